"""Calibration sets: texts (or pixels) that a model is run on, and which of them are taken. Needs no torch.

Two rules select and cut. ``blocks``: documents in the order of the file (a seeded choice of them where
there are more than asked for), their tokens one after another, in blocks of ``tokens``. ``paper`` is the
selection that AIM's release makes: documents in a seeded order, stripped, the empty and those over
``tokens`` tokens passed over, until ``documents`` are taken; their tokens one after another, in blocks of
``tokens``. Under both a tail shorter than a block is left out unless there is nothing else, so no padding
ever exists.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from merge.errors import (
    CalibrationEmpty,
    CalibrationEncoding,
    CalibrationFormat,
    CalibrationMissing,
    CalibrationTooLarge,
    CalibrationTooShort,
)

Rule = Literal["blocks", "paper"]
RULES: tuple[Rule, ...] = ("blocks", "paper")
DEFAULT = "default"
DOCUMENTS = 256
TOKENS = 512
SEED = 42
MAX_BYTES = 256 << 20
LEAST_CHARACTERS = 32
"""Files of less are refused without a tokenizer being asked: hardly more than a token or two."""
TEXTS = (".txt", ".md")
LINES = (".jsonl", ".ndjson")
_LINE = 'write each line as {"text": "..."}'
_ARRAYS = (".npy", ".safetensors")


@dataclass(frozen=True)
class Samples:
    """A calibration set and the rule by which it is used.

    ``texts`` are whole documents, before the rule has chosen; ``pixels`` are files of arrays (channels,
    height, width), or of a batch of them. ``sha256`` (hex) is that of the data as it lay in its file, which
    was read as ``lines`` of JSON or not.
    """

    label: str
    sha256: str
    texts: tuple[str, ...] = field(repr=False, default=())
    pixels: tuple[Path, ...] = ()
    documents: int = DOCUMENTS
    tokens: int = TOKENS
    rule: Rule = "blocks"
    seed: int = SEED
    lines: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What decides, besides the data's bytes, on which tokens a model is run."""
        names = ("documents", "tokens", "rule", "seed", "lines")
        return {name: getattr(self, name) for name in names}


def read_samples(
    source: Path | str,
    *,
    documents: int = DOCUMENTS,
    tokens: int = TOKENS,
    rule: Rule = "blocks",
    seed: int = SEED,
    label: str | None = None,
) -> Samples:
    """Reads ``default``, a .txt, .md or .jsonl file, or a folder of .npy / .safetensors pixel arrays.

    A text's documents are separated by blank lines; a text without any is one document. A line of JSON is
    an object with a ``text``. Raises a subclass of ``CalibrationInvalid``.
    """
    name = label or str(source)
    if documents < 1 or tokens < 2:
        raise CalibrationFormat(f"{name}: at least 1 document and 2 tokens a block are needed.")
    if rule not in RULES:
        raise CalibrationFormat(f"{name}: there is no rule {str(rule)[:40]!r}; it is {' or '.join(RULES)}.")
    texts: tuple[str, ...] = ()
    pixels: tuple[Path, ...] = ()
    if source == DEFAULT:
        texts, sha256 = default_set()
    elif Path(source).is_dir():
        pixels, sha256 = _pixel_files(Path(source), name)
    else:
        texts, sha256 = _read_file(Path(source), name)
    lines = Path(source).suffix.lower() in LINES
    return Samples(name, sha256, texts, pixels, documents, tokens, rule, seed, lines)


def samples_of(texts: Sequence[str], label: str = "texts", **settings: Any) -> Samples:
    """A calibration set of texts that are at hand."""
    kept = _not_empty(texts, label)
    digest = hashlib.sha256("\0".join(kept).encode("utf-8", "surrogatepass")).hexdigest()
    return Samples(label, digest, kept, **settings)


def default_set() -> tuple[tuple[str, ...], str]:
    """The documents of the set that is shipped, and its digest; kinds of text alternate."""
    folder = resources.files("merge.learn").joinpath("default")
    files = sorted(item.name for item in folder.iterdir() if item.name.endswith(".txt"))
    raws = [folder.joinpath(file).read_bytes() for file in files]
    digest = hashlib.sha256()
    for file, raw in zip(files, raws, strict=True):
        digest.update(f"{file}\0{len(raw)}\0".encode() + raw)
    parts = [_documents(raw.decode("utf-8"), "\n\n\n") for raw in raws]
    longest = max(len(part) for part in parts)
    turns = (part[place] for place in range(longest) for part in parts if place < len(part))
    return tuple(turns), digest.hexdigest()


def chosen(samples: Samples) -> tuple[str, ...]:
    """The documents in the order in which they are used; the rule's limits of length come after the
    tokens.
    """
    order = list(range(len(samples.texts)))
    random.Random(samples.seed).shuffle(order)
    if samples.rule == "paper":
        return tuple(samples.texts[place].strip() for place in order)
    return tuple(samples.texts[place] for place in sorted(order[: samples.documents]))


def cut(tokenized: Iterable[Sequence[int]], samples: Samples, longest: int | None = None) -> list[list[int]]:
    """Blocks of token ids of the chosen documents (tokenized lazily), at most ``documents`` of them;
    ``longest`` is what the model can take. All are as long as the first, which is shorter than a block only
    if it is alone.
    """
    size = samples.tokens if longest is None else min(samples.tokens, longest)
    taken, ids = 0, list[int]()
    for document in tokenized:
        if taken == samples.documents or len(ids) >= samples.documents * size:
            break
        if samples.rule == "paper" and not 0 < len(document) <= samples.tokens:
            continue
        ids.extend(document)
        taken += 1
    whole = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
    return whole[: samples.documents] or ([ids] if ids else [])


def _read_file(path: Path, name: str) -> tuple[tuple[str, ...], str]:
    kind = path.suffix.lower()
    if not path.is_file():
        raise CalibrationMissing(f"{name}: there is no calibration file or folder of that name.")
    if kind == ".parquet":
        raise CalibrationFormat(f"{name} is Parquet, which is not read here; give its texts as .jsonl.")
    if kind not in (*TEXTS, *LINES):
        raise CalibrationFormat(
            f"{name} is no calibration data that is known: give a .txt (documents separated by blank lines), "
            'a .jsonl (lines of {"text": ...}), or a folder of .npy or .safetensors pixel arrays.'
        )
    if path.stat().st_size > MAX_BYTES:
        raise CalibrationTooLarge(
            f"{name} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read. A few hundred "
            f"documents do."
        )
    raw = path.read_bytes()
    return documents_of(raw, kind, name), hashlib.sha256(raw).hexdigest()


def documents_of(raw: bytes, kind: str, name: str) -> tuple[str, ...]:
    """The documents in the bytes of a file whose name ends in ``kind`` (``.txt``, ``.jsonl``); raises a
    subclass of ``CalibrationInvalid``.
    """
    text = decoded(raw, name)
    return enough(_lines(text, name) if kind in LINES else _documents(text), name)


def enough(texts: Sequence[str], name: str) -> tuple[str, ...]:
    """The texts of a file without the empty ones; raises ``CalibrationEmpty`` and ``CalibrationTooShort``."""
    kept = _not_empty(texts, name)
    count = sum(map(len, kept))
    if count < LEAST_CHARACTERS:
        raise CalibrationTooShort(
            f"{name} holds {count} characters, hardly more than a token; at least {LEAST_CHARACTERS} are "
            "needed, and some thousands of words to say anything. Give longer texts, or more of them."
        )
    return kept


def decoded(raw: bytes, name: str) -> str:
    """UTF-8 (a byte order mark is dropped); raises ``CalibrationEncoding``, naming the byte."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationEncoding(
            f"{name} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}. Save it as UTF-8 "
            "(iconv -t utf-8 does it)."
        ) from None
    if "\0" in text:
        raise CalibrationEncoding(
            f"{name} holds NUL characters: it is no plain text, or it is UTF-16. Save it as UTF-8."
        )
    return text


def _documents(text: str, separator: str = "\n\n") -> list[str]:
    plain = text.replace("\r\n", "\n")
    parts = plain.split(separator)
    if separator == "\n\n":
        joined: list[list[str]] = [[]]
        for line in plain.split("\n"):
            if line.strip():
                joined[-1].append(line)
            elif joined[-1]:
                joined.append([])
        parts = ["\n".join(lines) for lines in joined]
    return [part.strip("\n") for part in parts if part.strip()]


def _lines(text: str, name: str) -> list[str]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise CalibrationFormat(f"{name}: line {number} is not JSON; {_LINE}.") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise CalibrationFormat(
                f'{name}: line {number} is no object with a "text" that is a string; {_LINE}.'
            )
        try:
            entry["text"].encode()
        except UnicodeEncodeError:
            raise CalibrationEncoding(
                f"{name}: line {number} holds half of a surrogate pair, which is no character."
            ) from None
        found.append(entry["text"])
    return found


def _not_empty(texts: Sequence[str], name: str) -> tuple[str, ...]:
    kept = tuple(text for text in texts if text.strip())
    if not kept:
        raise CalibrationEmpty(
            f"{name} holds no text but white space; give documents of the kind the model is for."
        )
    return kept


def _pixel_files(folder: Path, name: str) -> tuple[tuple[Path, ...], str]:
    files = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _ARRAYS))
    if not files:
        raise CalibrationEmpty(f"{name} holds no .npy or .safetensors file of pixel arrays.")
    if sum(path.stat().st_size for path in files) > MAX_BYTES:
        raise CalibrationTooLarge(f"{name} holds more than the {MAX_BYTES} bytes of pixels that are read.")
    digest = hashlib.sha256()
    for path in files:
        raw = path.read_bytes()
        digest.update(f"{path.name}\0{len(raw)}\0".encode() + raw)
    return files, digest.hexdigest()
