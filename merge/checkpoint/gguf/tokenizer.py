"""The tokenizer in a GGUF file's metadata, as the files that transformers loads one from.

The file lists the tokens by id, their kinds, and merges or (SentencePiece) scores that merges follow from;
how text is cut before that is a name (``tokenizer.ggml.pre``), whose patterns are written down here.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from merge.checkpoint.gguf.header import metadata_of
from merge.file_errors import GgufMalformed

MAX_TOKENS = 2_000_000
LONGEST = 256
"""Characters of a token that may be cut in two when merges are found; longer ones are no words."""

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_WORD_START = "\u2581"
_NAMED = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "separator",
    "pad_token": "padding", "mask_token": "mask",
}  # fmt: skip
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA_3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_MARKS}|{_REST}"
_QWEN_2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_MARKS}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{0}}"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _cased(ending: str, digits: str) -> str:
    return _CASED.replace("{0}", ending) + rf"|{digits}|{_SLASHED}|{_REST}"


PATTERNS: Mapping[str, str | None] = {
    **dict.fromkeys(("default", "gpt-2"), None),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), _LLAMA_3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN_2),
    "tekken": _cased("", r"\p{N}"),
    **dict.fromkeys(("gpt-4o", "llama4"), _cased(f"{_ENDINGS}?", r"\p{N}{1,3}")),
    "smollm": "digits",
}  # fmt: skip
"""How byte-level tokenizers cut text, by llama.cpp's name of it; ``None`` is GPT-2's own way."""


def tokenizer_texts(file: str, raw: bytes) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json from the first bytes of a file, as far as its header goes.

    Empty where the file has no tokenizer, or one of a kind that is not known. Raises ``GgufMalformed`` for
    lists that do not go together.
    """
    said = metadata_of(file, raw, "tokenizer.")
    tokens = said.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        return {}
    if len(tokens) > MAX_TOKENS:
        raise GgufMalformed(f"{file} lists {len(tokens)} tokens; at most {MAX_TOKENS} are read.")
    kinds = _column(file, said, "token_type", len(tokens)) or [_NORMAL] * len(tokens)
    kind, pre = said.get("tokenizer.ggml.model"), str(said.get("tokenizer.ggml.pre", "default"))
    gemma = str(said.get("general.architecture")).startswith("gemma")
    if kind == "llama":
        document = _pieces(file, said, tokens, gemma)
    elif kind == "gpt2" and pre in PATTERNS:
        document = _bytes(file, said, tokens, PATTERNS[pre], pre)
    else:
        return {}
    named = {
        name: tokens[at] for name, key in _NAMED.items() if (at := _id(said, key, len(tokens))) is not None
    }
    document["added_tokens"] = _added(tokens, kinds, set(named.values()))
    document["post_processor"] = _ends(said, named, kind == "llama", document["post_processor"], tokens)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
    }
    if isinstance(said.get("tokenizer.chat_template"), str):
        config["chat_template"] = said["tokenizer.chat_template"]
    return {"tokenizer.json": _json(document), "tokenizer_config.json": _json(config)}


def _pieces(file: str, said: Mapping[str, Any], tokens: list[str], gemma: bool) -> dict[str, Any]:
    """SentencePiece: blanks are marked, unknown characters fall back to bytes."""
    if gemma:
        blank = {at for at, token in enumerate(tokens) if " " in token and not token.strip()}
        for at in blank:
            tokens[at] = _WORD_START * len(tokens[at])
    listed = said.get("tokenizer.ggml.merges")
    scores = None if gemma else _column(file, said, "scores", len(tokens))
    merges = _listed_merges(file, listed) if isinstance(listed, list) else _merges(tokens, scores)
    prefix = not gemma and said.get("tokenizer.ggml.add_space_prefix", True)
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": _WORD_START}
    words = {"type": "Replace", "pattern": {"String": _WORD_START}, "content": " "}
    parts: list[dict[str, Any]] = [words, {"type": "ByteFallback"}, {"type": "Fuse"}]
    before: dict[str, Any] = blanks
    if prefix:
        before = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _WORD_START}, blanks]}
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = _id(said, "unknown", len(tokens))
    return _document(
        tokens, merges, before, None, {"type": "Sequence", "decoders": parts},
        unk_token=None if unknown is None else tokens[unknown], fuse_unk=True, byte_fallback=True,
    )  # fmt: skip


def _bytes(
    file: str, said: Mapping[str, Any], tokens: list[str], pattern: str | None, name: str
) -> dict[str, Any]:
    """Byte level: every byte is a character; what is cut apart beforehand never merges."""
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": pattern is None,
    }
    before: dict[str, Any] = level
    if pattern == "digits":
        alone = {"type": "Digits", "individual_digits": True}
        before = {"type": "Sequence", "pretokenizers": [alone, {**level, "use_regex": True}]}
    elif pattern is not None:
        cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        before = {"type": "Sequence", "pretokenizers": [cut, level]}
    composed = {"type": "NFC"} if "qwen" in name else None
    merges = _listed_merges(file, said.get("tokenizer.ggml.merges"))
    made = _document(
        tokens, merges, composed, before, {**level, "use_regex": True}, ignore_merges=pattern == _LLAMA_3
    )
    return {**made, "post_processor": {**level, "trim_offsets": False, "use_regex": True}}


def _document(
    tokens: Sequence[str], merges: list[list[str]], normalizer: Any, before: Any, decoder: Any, **more: Any
) -> dict[str, Any]:
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        **more, "vocab": {token: at for at, token in enumerate(tokens)}, "merges": merges,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": before, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip


def _listed_merges(file: str, listed: Any) -> list[list[str]]:
    if not isinstance(listed, list | None):
        raise GgufMalformed(f"tokenizer.ggml.merges in {file} is no list.")
    pairs = [merge.split(" ") for merge in listed or () if isinstance(merge, str)]
    if any(len(pair) != 2 for pair in pairs):
        raise GgufMalformed(f"{file} lists a merge that is not of two parts.")
    return pairs


def _merges(tokens: Sequence[str], scores: Sequence[float] | None) -> list[list[str]]:
    """The merges that a SentencePiece vocabulary implies: every cut of a token into two others, those of the
    highest score first, and of the earliest where there are no scores.
    """
    known = {token: at for at, token in enumerate(tokens)}
    order = sorted(range(len(tokens)), key=lambda at: at if scores is None else -scores[at])
    found: list[list[str]] = []
    for token in (tokens[at] for at in order):
        if len(token) > LONGEST:
            continue
        cuts = [
            (known[left], known[right], left, right)
            for at in range(1, len(token))
            if (left := token[:at]) in known and (right := token[at:]) in known
        ]
        found += [[left, right] for _, _, left, right in sorted(cuts)]
    return found


def _added(tokens: Sequence[str], kinds: Sequence[Any], named: set[str]) -> list[dict[str, Any]]:
    """Tokens that are cut out of the text before anything else."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": at, "content": token, **flags, "special": kind != _USER}
        for at, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if token and (kind in (_UNKNOWN, _CONTROL, _USER) or token in named)
    ]


def _ends(
    said: Mapping[str, Any], named: Mapping[str, str], pieces: bool, plain: Any, tokens: Sequence[str]
) -> Any:
    """What is put before and after a text; SentencePiece texts begin with a mark unless the file says not."""
    wanted = [
        said.get("tokenizer.ggml.add_bos_token", pieces) and named.get("bos_token"),
        said.get("tokenizer.ggml.add_eos_token", False) and named.get("eos_token"),
    ]
    if not any(wanted):
        return plain
    marks = [[{"SpecialToken": {"id": mark, "type_id": 0}}] if mark else [] for mark in wanted]
    single = [*marks[0], {"Sequence": {"id": "A", "type_id": 0}}, *marks[1]]
    second = [*marks[0], {"Sequence": {"id": "B", "type_id": 1}}, *marks[1]]
    special = {mark: {"id": mark, "ids": [tokens.index(mark)], "tokens": [mark]} for mark in wanted if mark}
    template = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, *second], "special_tokens": special
    }  # fmt: skip
    return template if plain is None else {"type": "Sequence", "processors": [plain, template]}


def _column(file: str, said: Mapping[str, Any], name: str, count: int) -> list[Any] | None:
    found = said.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list):
        return None
    if len(found) != count:
        raise GgufMalformed(f"{file} has {count} tokens, but tokenizer.ggml.{name} lists {len(found)}.")
    if not all(isinstance(each, int | float) for each in found):
        raise GgufMalformed(f"tokenizer.ggml.{name} in {file} lists something else than numbers.")
    return found


def _id(said: Mapping[str, Any], name: str, count: int) -> int | None:
    found = said.get(f"tokenizer.ggml.{name}_token_id")
    return found if type(found) is int and 0 <= found < count else None


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
