"""The tokens of a tokenizer and their ids, read from whichever of its files are there, and kept small.

A tokenizer is written down as tokenizer.json; as vocab.json (or vocab.txt) with added_tokens.json and
tokenizer_config.json beside it; or as a SentencePiece model, whose list of pieces is read here from the
bytes.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, takewhile
from typing import Any

from merge.checkpoint.header import parse_json_object
from merge.checkpoint.late import Token, late_tokens, next_id
from merge.file_errors import TextInvalid, VocabularyInvalid

VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
MAX_TOKENS = 2_000_000
MAX_TOKEN_CHARS = 4096
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_LONE_BYTE = re.compile("<0x[0-9A-F]{2}>")
_COUNTED = re.compile(r"(\S+) \d+\s*")
_BEFORE = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""What stands before the words of a vocabulary whose lines count them (PhoBERT, BERTweet)."""
_WORD_START = "\u2581"
_SPACE = "\u0120"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is cut out of the text before anything else; ``flags`` as in tokenizer.json."""

    text: str
    id: int
    flags: Mapping[str, bool]

    @property
    def special(self) -> bool:
        """Whether it is left out when text is decoded for people."""
        return bool(self.flags.get("special"))


@dataclass(frozen=True)
class Vocabulary:
    """``tokens`` maps every token, as it is spelt in the files, to its id; ``added`` are among them.

    ``kind`` is ``BPE``, ``Unigram``, ``WordPiece``, ``WordLevel`` or ``SentencePiece``; ``late`` are
    tokens that only settings name, with the ids they get where the tokenizer is loaded; ``misplaced`` is an
    added token that would not get the id its file gives it.
    """

    kind: str
    tokens: Mapping[str, int]
    added: tuple[AddedToken, ...]
    late: tuple[AddedToken, ...]
    byte_fallback: bool
    misplaced: str | None = None

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.tokens.values(), default=-1) + 1

    @cached_property
    def spelling(self) -> str:
        """How plain tokens are written: ``bytes`` (a character each), ``words`` (U+2581) or ``plain``."""
        spaced = sum(token.startswith(_SPACE) for token in self.tokens)
        marked = sum(token.startswith(_WORD_START) for token in self.tokens)
        if not spaced and not marked:
            return "plain"
        return "bytes" if spaced >= marked else "words"

    def meaning(self, token: str) -> bytes:
        """The bytes of text that a token stands for."""
        if token in self._added_texts:
            return token.encode()
        return _meaning(token, self.spelling)

    def meanings(self) -> dict[bytes, int]:
        """The bytes each token stands for, with its id: comparable between spellings.

        Where two tokens mean the same, the added one counts, and a lone byte (``<0x41>``) counts last.
        """
        found = {token.text.encode(): token.id for token in self.added}
        last: list[tuple[bytes, int]] = []
        for token, number in self.tokens.items():
            if token in self._added_texts:
                continue
            meaning = _meaning(token, self.spelling)
            if _LONE_BYTE.fullmatch(token):
                last.append((meaning, number))
            else:
                found.setdefault(meaning, number)
        for meaning, number in last:
            found.setdefault(meaning, number)
        return found

    def loaded(self, rows: int) -> "Vocabulary":
        """With the late tokens that have a row."""
        late = [token for token in self.late if token.id < rows]
        tokens = {**self.tokens, **{token.text: token.id for token in late}}
        return replace(self, tokens=tokens, added=(*self.added, *late)) if late else self

    @cached_property
    def _added_texts(self) -> frozenset[str]:
        return frozenset(token.text for token in self.added)

    def pack(self) -> bytes:
        """A small form to keep many of."""
        added, late = (
            [[token.text, token.id, dict(token.flags)] for token in listed]
            for listed in (self.added, self.late)
        )
        document = [self.kind, dict(self.tokens), added, late, self.byte_fallback, self.misplaced]
        return zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 1)

    @classmethod
    def unpack(cls, packed: bytes) -> "Vocabulary":
        """The vocabulary that was packed."""
        kind, tokens, added, late, *rest = json.loads(zlib.decompress(packed))
        listed, named = (tuple(AddedToken(*each) for each in tokens) for tokens in (added, late))
        return cls(kind, tokens, listed, named, *rest)


def read_vocabulary(texts: Mapping[str, bytes]) -> Vocabulary | None:
    """The vocabulary in a model's small files; ``None`` where there is none that can be read.

    Raises ``TextInvalid`` where a file does not map tokens to whole numbers.
    """
    file = next((name for name in VOCABULARY_FILES if name in texts), None)
    if file is None:
        return None
    config = parse_json_object("tokenizer_config.json", texts.get("tokenizer_config.json", b"{}"))
    found: _Found | None
    if file == "tokenizer.json":
        found = _from_fast(parse_json_object(file, texts[file]))
    elif file.endswith(".model"):
        found = _from_pieces(texts[file])
    elif file == "vocab.txt":
        lines = texts[file].decode("utf-8", "replace").split("\n")
        lines = lines[:-1] if lines[-1:] == [""] else lines
        counted = bool(lines) and all(_COUNTED.fullmatch(line) for line in lines)
        words = {line.rstrip("\r"): at for at, line in enumerate(lines)}
        found = ("BPE", _counted(lines, config), [], False) if counted else ("WordPiece", words, [], False)
    else:
        kind = "BPE" if "merges.txt" in texts else "WordLevel"
        found = (kind, parse_json_object(file, texts[file]), [], False)
    if found is None:
        return None
    kind, own, added, fallback = found
    misplaced = _misplaced(own, added) if file == "tokenizer.json" else None
    if file != "tokenizer.json":
        added = [*added, *_from_slow(texts, config)]
    tokens = {**own, **{each["content"]: each.get("id") for each in added}}
    if not all(type(number) is int and 0 <= number < 1 << 31 for number in tokens.values()):
        raise TextInvalid(f"{file} does not map tokens to whole numbers.")
    if len(tokens) > MAX_TOKENS:
        raise TextInvalid(f"{file} has {len(tokens)} tokens; at most {MAX_TOKENS} are accepted.")
    flagged = {each["content"]: _flags(each) for each in sorted(added, key=lambda each: int(each["id"]))}
    listed = tuple(AddedToken(text, tokens[text], flags) for text, flags in flagged.items())
    last = max((token.id for token in listed), default=-1)
    late = _late(
        late_tokens(texts, config, tokens, binary=file.endswith(".model")), next_id(len(own), last), tokens
    )
    return Vocabulary(kind, tokens, listed, late, fallback, misplaced)


def check_vocabulary(vocabulary: Vocabulary, label: str) -> None:
    """Refuses what cannot be lined up with another vocabulary; ``VocabularyInvalid`` names the token."""
    owners: dict[int, str] = {}
    for token, number in vocabulary.tokens.items():
        other = owners.setdefault(number, token)
        if other != token:
            raise VocabularyInvalid(
                f"{label}: the tokens {other[:40]!r} and {token[:40]!r} share id {number}."
            )
        if len(token) > MAX_TOKEN_CHARS:
            raise VocabularyInvalid(
                f"{label}: token {number} has {len(token)} characters; at most {MAX_TOKEN_CHARS} are read."
            )
        if any(0xD800 <= ord(char) < 0xE000 for char in token):
            raise VocabularyInvalid(f"{label}: token {number} holds half of a surrogate pair.")
    if vocabulary.misplaced is not None:
        token = vocabulary.misplaced
        raise VocabularyInvalid(
            f"{label}: tokenizer.json gives the added token {token[:40]!r} an id that it will not have when "
            "it is loaded; save the tokenizer anew."
        )
    for each in vocabulary.added:
        odd = next((c for c in each.text if (ord(c) < 32 and c not in "\t\n\r\v\f") or ord(c) == 127), None)
        if not each.text or odd is not None:
            what = "is empty" if odd is None else f"holds the control character {odd!r}"
            raise VocabularyInvalid(f"{label}: the added token {each.id} {what}.")
    if vocabulary.size > max(4 * len(owners), len(owners) + (1 << 16)):
        raise VocabularyInvalid(
            f"{label}: {len(owners)} tokens have ids up to {vocabulary.size - 1}: nearly all are holes."
        )


def differences(ours: Vocabulary, theirs: Vocabulary) -> str:
    """How many ids mean another token, in words, with the first of them."""
    names = {number: token for token, number in ours.tokens.items()}
    moved = [
        (number, names[number], token)
        for token, number in sorted(theirs.tokens.items(), key=lambda item: item[1])
        if number in names and names[number] != token
    ]
    if not moved:
        return f"{len(theirs.tokens)} tokens against {len(ours.tokens)}, the shared ids mean the same"
    number, our, their = moved[0]
    return f"{len(moved)} ids mean another token: {number} is {their[:40]!r}, not {our[:40]!r}"


_Found = tuple[str, dict[str, Any], list[dict[str, Any]], bool]


def _from_fast(document: Mapping[str, Any]) -> _Found:
    model = document.get("model")
    tokens = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(tokens, list):
        tokens = {str(item[0]): at for at, item in enumerate(tokens) if isinstance(item, list) and item}
    if not isinstance(model, dict) or not isinstance(tokens, dict):
        raise TextInvalid("tokenizer.json does not map tokens to whole numbers.")
    listed = document.get("added_tokens")
    added = [
        item
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, dict) and isinstance(item.get("content"), str)
    ]
    if any(type(item.get("id")) is not int for item in added):
        raise TextInvalid("tokenizer.json does not map tokens to whole numbers.")
    kind = model.get("type")
    if not isinstance(kind, str):
        kind = "BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordLevel"
    return kind, tokens, added, bool(model.get("byte_fallback"))


def _misplaced(tokens: Mapping[str, Any], added: list[dict[str, Any]]) -> str | None:
    """The first added token that gets another id than its file says when the tokenizer is loaded."""
    given, last = dict(tokens), -1
    for each in added:
        text = each["content"]
        if given.setdefault(text, next_id(len(tokens), last)) != each["id"]:
            return str(text)
        last = max(last, given[text])
    return None


def _late(listed: list[Token], first: int, tokens: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """None from the first on whose id another token has already, in a map with holes."""
    taken = set(tokens.values())
    free = takewhile(lambda number: number not in taken, count(first))
    return tuple(
        AddedToken(token["content"], number, _flags(token))
        for token, number in zip(listed, free, strict=False)
    )


def _flags(token: Token) -> dict[str, bool]:
    return {flag: bool(token.get(flag)) for flag in _FLAGS}


def _from_slow(texts: Mapping[str, bytes], config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Tokens that a tokenizer without tokenizer.json lists beside its vocabulary."""
    decoder = config.get("added_tokens_decoder")
    for number, item in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(item, dict) and isinstance(item.get("content"), str) and number.isdecimal():
            yield {**item, "id": int(number[:12])}
    if "added_tokens.json" in texts:
        for token, number in parse_json_object("added_tokens.json", texts["added_tokens.json"]).items():
            if type(number) is not int:
                raise TextInvalid("added_tokens.json does not map tokens to whole numbers.")
            yield {"content": token, "id": number, "special": token.startswith("<")}


def _counted(lines: list[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Words that come with how often they were seen, as fairseq writes them."""
    named = {name: config.get(name, token) for name, token in _BEFORE.items()}
    texts = [each.get("content") if isinstance(each, dict) else each for each in named.values()]
    tokens = {str(text): at for at, text in enumerate(texts)}
    for line in lines:
        tokens[line.split(" ")[0]] = len(tokens)
    return tokens


def _from_pieces(raw: bytes) -> _Found | None:
    """The pieces of a SentencePiece model: field 1 of its message, with text (1), score (2) and type (3)."""
    tokens: dict[str, Any] = {}
    added: list[dict[str, Any]] = []
    fallback = False
    number = 0
    try:
        for tag, value in _fields(raw):
            if tag != 1 or not isinstance(value, bytes):
                continue
            piece = dict(_fields(value))
            text, kind = piece.get(1, b""), piece.get(3, 1)
            if not isinstance(text, bytes):
                return None
            token = text.decode("utf-8")
            tokens[token] = number
            fallback = fallback or kind == 6
            if kind in (3, 4):
                added.append({"content": token, "id": number, "special": kind == 3})
            number += 1
    except (ValueError, IndexError):
        return None
    return ("SentencePiece", tokens, added, fallback) if number and len(tokens) == number else None


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer message; ``ValueError`` or ``IndexError`` where it is none."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        tag, wire = key >> 3, key & 7
        if wire == 0:
            number, at = _varint(raw, at)
            yield tag, number
            continue
        length = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            length, at = _varint(raw, at)
        if length is None or at + length > len(raw):
            raise ValueError("not a message")
        yield tag, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("not a number")


def _meaning(token: str, spelling: str) -> bytes:
    if spelling == "bytes":
        codes = [_BYTE_OF.get(char, -1) for char in token]
        if min(codes, default=0) >= 0:
            return bytes(codes)
    elif spelling == "words":
        if _LONE_BYTE.fullmatch(token):
            return bytes.fromhex(token[3:5])
        return token.replace(_WORD_START, " ").encode()
    return token.encode()


def byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte in byte-level tokenizers (as GPT-2 has it)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = iter(range(256, 512))
    return tuple(chr(code) if code in plain else chr(next(shifted)) for code in range(256))


_BYTE_OF = {char: code for code, char in enumerate(byte_characters())}
