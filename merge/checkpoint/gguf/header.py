"""The header of a GGUF file, read as if an enemy had written it.

A file is the letters GGUF, a version, the numbers of tensors and of metadata entries, the entries, the
tensors' names, shapes, types and offsets, padding, then the data. All numbers are little endian. Nothing here
opens a file: the caller hands over its first bytes, and is told with ``header_end`` when those are enough.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from merge import file_errors
from merge.checkpoint.gguf.types import OTHERS, TYPES
from merge.checkpoint.header import (
    MAX_ELEMENTS,
    MAX_TENSORS,
    NOT_FETCHED,
    POINTER,
    TensorInfo,
    check_tensor_name,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 128_000_000
"""Vocabularies with their merges are part of the header: some twenty million bytes are honest."""
MAX_ENTRIES = 65_536
MAX_RANK = 4
KEPT_ITEMS = 4096
"""Longer lists (vocabularies) are counted, not kept."""

_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_BOOL, _STRING, _LIST = 7, 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as the file has it: ``shape`` with the longest-striding side first, as elsewhere."""

    info: TensorInfo
    shape: tuple[int, ...]
    type: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says about itself, checked. ``metadata`` holds a ``Long`` where a list was too long."""

    tensors: Mapping[str, GgufTensor]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Long:
    """A list that was counted and left."""

    length: int


class _NeedsMore(Exception):
    """The bytes at hand end inside the header."""


def header_end(raw: bytes, file: str = "the file") -> int | None:
    """Where the header ends, or ``None`` where ``raw`` ends before; raises ``FileRefused`` for a lie."""
    try:
        return _read(file, raw)[2]
    except _NeedsMore:
        return None


def metadata_of(file: str, raw: bytes, prefix: str) -> dict[str, Any]:
    """The metadata with all lists in full whose keys begin with ``prefix``. ``raw`` is a checked header."""
    try:
        return _read(file, raw, prefix)[0]
    except _NeedsMore:
        raise file_errors.HeaderTruncated(f"{file} ends inside its header: the file is cut short.") from None


def parse_gguf(file: str, raw: bytes, file_size: int) -> GgufHeader:
    """Checks the first bytes of ``file`` (``file_size`` bytes long) and returns its tensors.

    ``raw`` reaches at least to ``header_end``. Raises a subclass of ``FileRefused``, one for each lie.
    """
    try:
        metadata, tensors, end = _read(file, raw)
    except _NeedsMore:
        raise file_errors.HeaderTruncated(f"{file} ends inside its header: the file is cut short.") from None
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise file_errors.GgufMalformed(
            f"{file} aligns tensors to {alignment!r} bytes, which is no power of two."
        )
    start = -(-end // alignment) * alignment
    made = {}
    for name, (shape, number, offset) in tensors.items():
        if offset % alignment:
            raise file_errors.OffsetsInvalid(f"{name} in {file} begins at {offset}, which is not aligned.")
        made[name] = _tensor(file, name, shape, number, start + offset)
    _check_spans(file, made, start, file_size, alignment)
    return GgufHeader(made, metadata)


def _tensor(file: str, name: str, shape: tuple[int, ...], number: int, begin: int) -> GgufTensor:
    kind = TYPES[number]
    columns = shape[-1]
    if columns % kind.entries:
        raise file_errors.SizeMismatch(
            f"{name} in {file} has rows of {columns} entries: no blocks of {kind.entries} ({kind.name})."
        )
    rows, width = prod(shape[:-1]), columns // kind.entries * kind.block_bytes
    info = TensorInfo(name, "U8", (rows, width), file, begin, begin + rows * width)
    return GgufTensor(info, shape, number)


def _check_spans(
    file: str, tensors: Mapping[str, GgufTensor], start: int, file_size: int, alignment: int
) -> None:
    at, name = start, "the header"
    infos = sorted((each.info for each in tensors.values()), key=lambda info: (info.begin, info.end))
    for info in infos:
        if info.end > file_size:
            raise file_errors.FileSizeMismatch(
                f"{file} has {file_size} bytes, but {info.name} ends at {info.end}: the file is cut short."
            )
    for info in infos:
        if info.begin < at:
            raise file_errors.OffsetsOverlap(f"{info.name} in {file} begins inside the tensor before it.")
        if info.begin - at >= alignment:
            raise file_errors.OffsetsHole(
                f"{info.begin - at} bytes after {name} in {file} belong to no tensor."
            )
        at, name = info.end, info.name
    if file_size - at >= alignment:
        raise file_errors.FileSizeMismatch(f"{file} has {file_size} bytes, but its header accounts for {at}.")


Described = dict[str, tuple[tuple[int, ...], int, int]]


def _read(file: str, raw: bytes, whole: str | None = None) -> tuple[dict[str, Any], Described, int]:
    """Metadata, tensors by name (shape, type, offset) and the end of the header; lists in full under keys
    that begin with ``whole``.
    """
    bytes_ = _Bytes(file, raw)
    if raw.startswith(POINTER):
        raise file_errors.GgufMalformed(f"{file} {NOT_FETCHED}")
    if bytes_.take(4) != MAGIC:
        raise file_errors.GgufMalformed(f"{file} does not begin with GGUF: it is no such file.")
    version = bytes_.number("I")
    if version not in VERSIONS:
        raise file_errors.GgufMalformed(
            f"{file} has the version {version}; {VERSIONS[0]} and {VERSIONS[1]} are read."
        )
    tensors, entries = bytes_.number("Q"), bytes_.number("Q")
    if tensors > MAX_TENSORS:
        raise file_errors.TooManyTensors(
            f"{file} lists {tensors} tensors; at most {MAX_TENSORS} are accepted."
        )
    if entries > MAX_ENTRIES:
        raise file_errors.GgufMalformed(
            f"{file} lists {entries} entries; at most {MAX_ENTRIES} are accepted."
        )
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = bytes_.text(MAX_ENTRIES)
        if key in metadata:
            raise file_errors.HeaderDuplicateKey(f"{file} holds the key {key[:80]!r} twice.")
        bytes_.kept = MAX_HEADER_BYTES if whole is not None and key.startswith(whole) else KEPT_ITEMS
        metadata[key] = bytes_.value(bytes_.number("I"))
    described: Described = {}
    for _ in range(tensors):
        name, about = bytes_.tensor()
        if name in described:
            raise file_errors.HeaderDuplicateKey(f"{file} holds the tensor {name} twice.")
        described[name] = about
    return metadata, described, bytes_.at


class _Bytes:
    """Reads one thing after another, and never past the end."""

    def __init__(self, file: str, raw: bytes) -> None:
        self.file, self.raw, self.at = file, raw, 0
        self.kept = KEPT_ITEMS

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > MAX_HEADER_BYTES:
            raise file_errors.HeaderTooLarge(f"{self.file} has a header of over {MAX_HEADER_BYTES} bytes.")
        if end > len(self.raw):
            raise _NeedsMore
        found = self.raw[self.at : end]
        self.at = end
        return found

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, most: int = MAX_HEADER_BYTES) -> str:
        length = self.number("Q")
        if length > most:
            raise file_errors.GgufMalformed(
                f"{self.file} holds a text of {length} bytes; at most {most} are read."
            )
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise file_errors.GgufMalformed(f"{self.file} holds a text that is not UTF-8.") from None

    def value(self, kind: int) -> Any:
        if kind == _LIST:
            return self.list()
        if kind == _STRING:
            return self.text()
        if kind not in _NUMBERS:
            raise file_errors.GgufMalformed(f"{self.file} holds a value of the unknown type {kind}.")
        found = self.number(_NUMBERS[kind])
        if kind == _BOOL and found > 1:
            raise file_errors.GgufMalformed(f"{self.file} holds a truth value of {found}.")
        return bool(found) if kind == _BOOL else found

    def list(self) -> Any:
        kind, length = self.number("I"), self.number("Q")
        if kind == _STRING:
            return self.texts(length)
        if kind not in _NUMBERS:
            raise file_errors.GgufMalformed(
                f"{self.file} holds a list of the type {kind}, which is not read."
            )
        code = _NUMBERS[kind]
        raw = self.take(length * struct.calcsize("<" + code))
        return list(struct.unpack(f"<{length}{code}", raw)) if length <= self.kept else Long(length)

    def texts(self, length: int) -> Any:
        if length > MAX_HEADER_BYTES // 8:
            raise file_errors.HeaderTooLarge(f"{self.file} holds a list of {length} texts.")
        if length <= self.kept:
            return [self.text() for _ in range(length)]
        at, raw, size = self.at, self.raw, len(self.raw)
        for _ in range(length):
            at += 8 + int.from_bytes(raw[at : at + 8], "little")
            if at > size:
                self.at = min(at, MAX_HEADER_BYTES)
                self.take(at - self.at + 1)
        self.at = at
        return Long(length)

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self.text()
        check_tensor_name(self.file, name)
        rank = self.number("I")
        if not 1 <= rank <= MAX_RANK:
            raise file_errors.RankTooHigh(
                f"{name} in {self.file} has {rank} dimensions; 1 to {MAX_RANK} are accepted."
            )
        shape = tuple(reversed([self.number("Q") for _ in range(rank)]))
        number, offset = self.number("I"), self.number("Q")
        if number in OTHERS:
            raise file_errors.DtypeUnsupported(
                f"{name} in {self.file} is stored as {OTHERS[number]}, which is not decoded; "
                "use a file of another quantisation."
            )
        if number not in TYPES:
            raise file_errors.DtypeUnknown(f"{name} in {self.file} has the unknown type {number}.")
        if max(shape) > MAX_ELEMENTS or prod(shape) > MAX_ELEMENTS or offset > MAX_ELEMENTS:
            raise file_errors.ShapeOverflow(f"{name} in {self.file} is larger than any file can hold.")
        return name, (shape, number, offset)
