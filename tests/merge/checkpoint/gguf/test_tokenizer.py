"""The tokenizer in a GGUF file is the one it was made from, and the one Transformers itself makes of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from merge.checkpoint.gguf.tokenizer import PATTERNS, tokenizer_texts
from merge.checkpoint.index import index_folder, read_header
from merge.file_errors import GgufMalformed
from tests.merge.checkpoint.gguf.test_model import saved
from tests.merge.checkpoint.gguf.write import write
from tests.merge.tokenizer import small

TEXTS = (
    "The rooms of a house", "it's 12345 o'clock, isn't it?", "  two blanks\n\n and\ttabs",
    "naïve café Straße", "日本語 🙂 and 1,000.50", "def f(x):\n    return x*2",
    "ALLCAPS camelCase snake_case", "don't  DON'T",
)  # fmt: skip
TEMPLATE = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"
Meta = dict[str, Any]


def book() -> list[str]:
    return [path.read_text() for path in sorted(Path("docs").glob("*.md"))[:6]]


def trained_bytes(pattern: str | None, digits: bool = False) -> Tokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    made = Tokenizer(models.BPE())
    if digits:
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    elif pattern is None:
        made.pre_tokenizer = level
    else:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(book(), trainer)
    return made


def trained_pieces(prefix: bool) -> Tokenizer:
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    blank = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank]) if prefix else blank
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    words = [f"▁{word}" for text in book() for word in text.split()]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", "</s>", *fallback],
        show_progress=False,
        limit_alphabet=90,
    )
    made.train_from_iterator(words, trainer)
    made = Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | {"added_tokens": []}))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def described(
    tokenizer: Tokenizer, kind: str, pre: str, merges: bool, **flags: bool
) -> Callable[[Any], None]:
    """Writes what llama.cpp's converter writes of a tokenizer."""
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    control = {"<s>", "</s>"}
    kinds = [
        3 if t in control else 2 if t == "<unk>" else 4 if t == "<think>" else 6 if t.startswith("<0x") else 1
        for t in tokens
    ]

    def about(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        if merges:
            listed = json.loads(tokenizer.to_str())["model"]["merges"]
            writer.add_token_merges([" ".join(pair) for pair in listed])
        else:
            writer.add_token_scores([-float(at) for at in range(len(tokens))])
        for name, value in flags.items():
            getattr(writer, f"add_{name}")(value)
        writer.add_chat_template(TEMPLATE)

    return about


def file_of(folder: Path, name: str, about: Callable[[Any], None]) -> Path:
    tensors, config = saved(name, folder / "hf")
    return write(folder / "m.gguf", name, tensors, config, about=about)


def made_of(path: Path) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_texts(path.name, read_header(path))["tokenizer.json"].decode())


CASES: dict[str, tuple[str, str, str, bool]] = {
    "llama with scores": ("llama", "llama", "default", False),
    "gemma": ("gemma2", "llama", "default", False),
    **{f"bytes, {pre}": ("llama" if pre != "qwen2" else "qwen2", "gpt2", pre, True)
       for pre in ("gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "smollm")},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_cuts_texts_as_the_one_the_file_was_made_from_and_as_transformers_does(
    tmp_path: Path, case: str
) -> None:
    name, kind, pre, merges = CASES[case]
    pattern = PATTERNS.get(pre)
    truth = (
        trained_pieces(prefix=name != "gemma2")
        if kind == "llama"
        else trained_bytes(None if pattern == "digits" else pattern, pattern == "digits")
    )
    path = file_of(tmp_path, name, described(truth, kind, pre, merges, add_bos_token=False))
    ours, theirs = made_of(path), AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        found = ours.encode(text, add_special_tokens=False)
        assert found.ids == truth.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(found.ids) == text
        same_rules = case != "bytes, smollm" and not (kind == "llama" and text.startswith(" "))
        if same_rules:  # Transformers cuts no digits apart, and marks one blank where llama.cpp marks two
            assert found.ids == theirs(text, add_special_tokens=False)["input_ids"], text
    assert ours.get_vocab() == truth.get_vocab()


def test_marks_kinds_and_the_chat_template_come_along(tmp_path: Path) -> None:
    truth = trained_bytes(None)
    path = file_of(
        tmp_path, "llama", described(truth, "gpt2", "gpt-2", True, add_bos_token=True, add_eos_token=True)
    )
    texts = tokenizer_texts(path.name, read_header(path))
    config = json.loads(texts["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"], config["chat_template"]) == (
        "</s>",
        "<think>",
        TEMPLATE,
    )
    ours = made_of(path)
    assert ours.encode("a", "b").tokens == ["</s>", "a", "<think>", "</s>", "b", "<think>"]
    special = {
        each["content"]: each["special"] for each in json.loads(texts["tokenizer.json"])["added_tokens"]
    }
    assert special == {"<s>": True, "</s>": True, "<think>": False}


def test_the_model_has_a_vocabulary_and_its_result_the_files(tmp_path: Path) -> None:
    truth = trained_bytes(None)
    path = file_of(tmp_path, "llama", described(truth, "gpt2", "gpt-2", True, add_bos_token=True))
    index = index_folder(path)
    assert index.tokenizer is not None and index.tokenizer.chat_template
    vocabulary = index.tokenizer.vocabulary()
    assert vocabulary is not None and vocabulary.tokens == truth.get_vocab()
    out, _ = small.merged(tmp_path, {"sources": [{"id": "m", "model": "m.gguf"}], "steps": ["passthrough"]})
    loaded = AutoTokenizer.from_pretrained(out, local_files_only=True)
    for text in TEXTS:
        assert loaded(text, add_special_tokens=False)["input_ids"] == truth.encode(text).ids
    assert loaded.chat_template == TEMPLATE


def test_its_own_files_win_over_the_metadata(tmp_path: Path) -> None:
    path = file_of(tmp_path, "llama", described(trained_bytes(None), "gpt2", "gpt-2", True))
    own = tmp_path / "folder"
    small.speaker(tmp_path / "speaker")
    own.mkdir()
    path.rename(own / "m.gguf")
    (own / "tokenizer.json").write_bytes((tmp_path / "speaker" / "tokenizer.json").read_bytes())
    facts = index_folder(own).tokenizer
    assert facts is not None and facts.files == ("tokenizer.json",) and facts.made == b""


@pytest.mark.parametrize(("kind", "pre"), [("bert", "default"), ("gpt2", "nobody-knows")])
def test_of_an_unknown_kind_none_is_made(tmp_path: Path, kind: str, pre: str) -> None:
    path = file_of(tmp_path, "llama", described(trained_bytes(None), kind, pre, True))
    assert tokenizer_texts(path.name, read_header(path)) == {}
    assert index_folder(path).tokenizer is None


def test_lists_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    truth = trained_bytes(None)

    def short(writer: gguf.GGUFWriter) -> None:
        described(truth, "gpt2", "gpt-2", True)(writer)
        writer.kv_data[0]["tokenizer.ggml.token_type"].value.pop()

    with pytest.raises(GgufMalformed, match="token_type lists 899"):
        index_folder(file_of(tmp_path, "llama", short))


def test_a_merge_of_three_parts_is_refused(tmp_path: Path) -> None:
    def odd(writer: gguf.GGUFWriter) -> None:
        described(trained_bytes(None), "gpt2", "gpt-2", True)(writer)
        writer.kv_data[0]["tokenizer.ggml.merges"].value.append("a b c")

    with pytest.raises(GgufMalformed, match="not of two parts"):
        index_folder(file_of(tmp_path, "llama", odd))
