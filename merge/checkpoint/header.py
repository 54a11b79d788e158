"""The header of a safetensors file, read as if an enemy had written it.

A file is eight bytes n (little endian), n bytes of JSON, then the data. Nothing here opens a file: the
caller hands over the first 8 + n bytes and the size of the file, fetched from a disk or by a range request.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from merge import file_errors

MAX_HEADER_BYTES = 25_000_000
MAX_TENSORS = 200_000
MAX_NAME_CHARS = 512
MAX_RANK = 8
MAX_ELEMENTS = 1 << 48

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
DTYPE_NAMES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}

POINTER = b"version https://git-lfs"
"""How what Git keeps in the place of a large file begins."""
NOT_FETCHED = "is a pointer of Git LFS, not the file that it stands for; fetch that (git lfs pull)."

_NAME = re.compile(r"[A-Za-z0-9_.\-/]+")
_NEVER_IN_FILES = re.compile(r"[\\\x00-\x1f\x7f]")
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Coded:
    """How a tensor's numbers follow from what is stored: by a module of ``merge.checkpoint.codecs``.

    ``parts`` are the stored tensors by the name the scheme gives them, ``settings`` what the scheme must know
    beside them. Rows (lines of the last dimension) are decoded ``align`` at a time.
    """

    scheme: str
    parts: Mapping[str, "TensorInfo"]
    settings: Mapping[str, int]
    align: int = 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: ``begin`` and ``end`` are absolute byte offsets in ``file``.

    A tensor whose numbers are ``coded`` is listed as the floats they stand for: ``dtype`` and ``shape`` are
    theirs, the place is that of the first stored part.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int
    coded: Coded | None = None

    @property
    def numel(self) -> int:
        """Number of entries; 1 for a scalar."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        if self.coded is None:
            return self.end - self.begin
        return sum(part.end - part.begin for part in self.stored)

    @property
    def stored(self) -> tuple["TensorInfo", ...]:
        """What lies on the disk: the tensor itself, or the parts it is decoded from."""
        return (self,) if self.coded is None else tuple(self.coded.parts.values())


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself, checked."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this safetensors dtype and shape."""
    return (prod(shape) * DTYPE_BITS[dtype] + 7) // 8


def header_size(first8: bytes, file: str = "the file") -> int:
    """Length n of the JSON that follows the first eight bytes; refuses lengths over 25 MB."""
    if len(first8) < 8:
        raise file_errors.HeaderTruncated(
            f"{file} is shorter than eight bytes: it is not a safetensors file."
        )
    if first8.startswith(POINTER[:8]):
        raise file_errors.HeaderTruncated(f"{file} {NOT_FETCHED}")
    size = int.from_bytes(first8[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise file_errors.HeaderTooLarge(
            f"{file} claims a header of {size} bytes; at most {MAX_HEADER_BYTES} are read."
        )
    if size < 2:
        raise file_errors.HeaderTruncated(
            f"{file} claims a header of {size} bytes, too short for a JSON object."
        )
    return size


def parse_header(file: str, raw: bytes, file_size: int) -> Header:
    """Checks the first ``8 + n`` bytes of ``file`` (``file_size`` bytes long) and returns its tensors.

    Raises a subclass of ``FileRefused``, one for each lie a header can tell.
    """
    size = header_size(raw, file)
    if len(raw) < 8 + size or file_size < 8 + size:
        raise file_errors.HeaderTruncated(
            f"{file} ends inside its header of {size} bytes: the file is cut short."
        )
    document = parse_json_object(file, raw[8 : 8 + size])
    metadata = _check_metadata(file, document.pop("__metadata__", {}))
    if len(document) > MAX_TENSORS:
        raise file_errors.TooManyTensors(
            f"{file} lists {len(document)} tensors; at most {MAX_TENSORS} are accepted."
        )
    start = 8 + size
    tensors = {name: _check_entry(file, name, entry, start) for name, entry in document.items()}
    _check_spans(file, tensors, start, file_size)
    return Header(tensors, metadata)


def parse_json_object(file: str, raw: bytes, *, finite: bool = True) -> dict[str, Any]:
    """Parses a JSON object; duplicate keys, deep nesting and (if ``finite``) NaN are refused by name."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise file_errors.HeaderDuplicateKey(f"{file} holds the key {twice[:80]!r} twice.")
        return found

    def constant(name: str) -> float:
        if not finite:
            return float(name)
        raise file_errors.HeaderNotJson(f"{file} holds {name}, which is not JSON.")

    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise file_errors.HeaderTooDeep(f"{file} holds JSON nested too deeply.") from None
    except ValueError as error:
        raise file_errors.HeaderNotJson(f"{file} does not hold valid JSON: {str(error)[:120]}.") from None
    if not isinstance(document, dict):
        raise file_errors.HeaderNotJson(f"{file} holds JSON, but not an object.")
    return document


def _check_metadata(file: str, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise file_errors.HeaderMetadataInvalid(f"__metadata__ in {file} is not a map of strings to strings.")
    return found


def check_tensor_name(file: str, name: str) -> None:
    """Refuses names that are empty, too long, hold odd characters, or read like a path."""
    if len(name) > MAX_NAME_CHARS:
        raise file_errors.TensorNameInvalid(
            f"{file} holds a tensor name of {len(name)} characters; at most {MAX_NAME_CHARS} are accepted."
        )
    if not _NAME.fullmatch(name) or ".." in name or name.startswith("/"):
        raise file_errors.TensorNameInvalid(
            f"{file} holds the tensor name {name!r}; names are letters, digits and _ . - /, never a path."
        )


def check_file_name(name: str) -> None:
    """Refuses names that could leave a folder: absolute, with ``..``, a backslash or control characters."""
    parts = name.split("/")
    if (
        not name
        or len(name) > 1024
        or _NEVER_IN_FILES.search(name)
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise file_errors.FileNameInvalid(
            f"The file name {name[:80]!r} is not a plain name inside the model's folder."
        )


def _check_entry(file: str, name: str, entry: Any, start: int) -> TensorInfo:
    check_tensor_name(file, name)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise file_errors.TensorEntryInvalid(
            f"{name} in {file} must have exactly the fields dtype, shape and data_offsets."
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise file_errors.DtypeUnknown(f"{name} in {file} has the unknown dtype {str(dtype)[:40]!r}.")
    if not _natural_numbers(shape):
        raise file_errors.TensorEntryInvalid(
            f"The shape of {name} in {file} is not a list of natural numbers."
        )
    if not _natural_numbers(offsets) or len(offsets) != 2:
        raise file_errors.TensorEntryInvalid(
            f"The data_offsets of {name} in {file} are not two natural numbers."
        )
    if len(shape) > MAX_RANK:
        raise file_errors.RankTooHigh(
            f"{name} in {file} has {len(shape)} dimensions; at most {MAX_RANK} are accepted."
        )
    if max(shape, default=0) > MAX_ELEMENTS or prod(shape) > MAX_ELEMENTS:
        raise file_errors.ShapeOverflow(
            f"The shape of {name} in {file} has more entries than any file can hold."
        )
    begin, end = offsets
    if begin > end:
        raise file_errors.OffsetsInvalid(f"The offsets of {name} in {file} run backwards: {begin} to {end}.")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != end - begin:
        raise file_errors.SizeMismatch(
            f"{name} in {file} spans {end - begin} bytes, but {dtype} of shape {shape} takes {bits / 8:g}."
        )
    return TensorInfo(name, dtype, tuple(shape), file, start + begin, start + end)


def _natural_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_spans(file: str, tensors: Mapping[str, TensorInfo], start: int, file_size: int) -> None:
    at = start
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.end > file_size:
            raise file_errors.FileSizeMismatch(
                f"{file} has {file_size} bytes, but {info.name} ends at {info.end}: the file is cut short."
            )
        if info.begin < at:
            raise file_errors.OffsetsOverlap(f"{info.name} in {file} begins inside the tensor before it.")
        if info.begin > at:
            raise file_errors.OffsetsHole(
                f"{info.begin - at} bytes before {info.name} in {file} belong to no tensor."
            )
        at = info.end
    if at != file_size:
        raise file_errors.FileSizeMismatch(f"{file} has {file_size} bytes, but its header accounts for {at}.")
