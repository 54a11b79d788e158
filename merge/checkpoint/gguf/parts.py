"""A GGUF file that was split: its parts, found by their names and checked by what they say of each other."""

import re
from collections.abc import Mapping
from pathlib import Path

from merge import file_errors
from merge.checkpoint.gguf.header import GgufHeader

_MOST_PARTS = 99_999
"""What the five digits in a part's name can count to."""
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_stem(name: str) -> str:
    """What all parts of one file share, their number included; of a whole file its own name."""
    found = _PART.fullmatch(name)
    return f"{found['stem']}-of-{found['count']}" if found else name


def parts_beside(path: Path) -> list[Path]:
    """The file and the other parts of the same split, as far as they lie beside it."""
    if _PART.fullmatch(path.name) is None:
        return [path]
    return sorted(other for other in path.parent.iterdir() if part_stem(other.name) == part_stem(path.name))


def joined(headers: Mapping[str, GgufHeader]) -> GgufHeader:
    """One header for all parts, in the order of their names: the metadata is the first one's.

    Raises ``ShardMissing`` where a part is not there, ``GgufMalformed`` where one is of another split, and
    ``TensorTwice``.
    """
    names = sorted(headers)
    first = headers[names[0]]
    count = first.metadata.get("split.count", 0) or 1
    if type(count) is not int or count > _MOST_PARTS:
        raise file_errors.GgufMalformed(f"{names[0]} says that it is one part of {str(count)[:40]!r}.")
    if count == 1 and len(names) == 1:
        return first
    _check(names, count)
    tensors = dict(first.tensors)
    for number, name in enumerate(names):
        said = headers[name].metadata
        if (said.get("split.no"), said.get("split.count")) != (number, count):
            part = f"part {said.get('split.no')} of {said.get('split.count')}"
            raise file_errors.GgufMalformed(f"{name} says it is {part}, unlike its name.")
        for tensor, about in headers[name].tensors.items() if number else ():
            if tensor in tensors:
                raise file_errors.TensorTwice(f"{tensor} is in {tensors[tensor].info.file} and in {name}.")
            tensors[tensor] = about
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise file_errors.GgufMalformed(
            f"{names[0]} tells of {total} tensors, but its parts hold {len(tensors)}."
        )
    return GgufHeader(tensors, first.metadata)


def _check(names: list[str], count: int) -> None:
    there = {int(found["number"]) for name in names if (found := _PART.fullmatch(name))}
    missing = sorted(set(range(1, count + 1)) - there)
    if missing:
        stem = _PART.fullmatch(names[0])
        called = f"{stem['stem'] if stem else '...'}-{missing[0]:05d}-of-{count:05d}.gguf"
        raise file_errors.ShardMissing(f"{names[0]} is one part of {count}, but {called} is not there.")
    if len(names) != count:
        raise file_errors.GgufMalformed(
            f"{names[0]} is one part of {count}, but there are {len(names)} files."
        )
