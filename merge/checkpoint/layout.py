"""Where every output tensor will lie, known before the first byte is merged.

The header of a shard needs names, dtypes and shapes only, so all shards can be laid out from the plan, and
every block can be written straight to its final place. Same tensors, same bytes: nothing here depends on
time or on a dict's history.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from merge.checkpoint.header import DTYPE_BITS, TensorInfo, nbytes_of

STEM = "model"
"""How weight files are called where nothing else is usual."""

TensorSpec = tuple[str, str, tuple[int, ...]]
"""Name, safetensors dtype and shape of one output tensor."""


@dataclass(frozen=True)
class ShardLayout:
    """One output file: its name, its first bytes, and the absolute place of each tensor in it."""

    file: str
    header_bytes: bytes
    entries: Mapping[str, TensorInfo]
    size: int


def plan_shards(tensors: Sequence[TensorSpec], shard_bytes: int, stem: str = STEM) -> tuple[ShardLayout, ...]:
    """Fills shards of at most ``shard_bytes`` of data in the given order; a larger tensor stands alone.

    One shard is called ``<stem>.safetensors``; several are numbered, and need ``index_json`` beside them.
    Within a shard wider dtypes come first, so that every tensor is aligned; otherwise the order is kept.
    """
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in tensors:
        size = nbytes_of(spec[1], spec[2])
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += size
    names = numbered(stem, len(groups))
    return tuple(lay_out(file, group) for file, group in zip(names, groups, strict=True))


def numbered(stem: str, count: int) -> list[str]:
    """How so many weight files of one model are called."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def index_file(shards: Sequence[ShardLayout]) -> str:
    """Name of the file that ``index_json`` belongs in."""
    return f"{shards[0].file[: -len('-00001-of-00001.safetensors')]}.safetensors.index.json"


def index_json(shards: Iterable[ShardLayout]) -> bytes:
    """Content of the index of these shards, such as ``model.safetensors.index.json``, with a last newline."""
    placed = {name: (shard.file, info) for shard in shards for name, info in shard.entries.items()}
    document = {
        "metadata": {
            "total_parameters": sum(info.numel for _, info in placed.values()),
            "total_size": sum(info.nbytes for _, info in placed.values()),
        },
        "weight_map": {name: placed[name][0] for name in sorted(placed)},
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def lay_out(file: str, tensors: Sequence[TensorSpec], notes: Mapping[str, str] | None = None) -> ShardLayout:
    """One file of these tensors (``notes`` in its header); wider dtypes first, else in the order given."""
    ordered = sorted(tensors, key=lambda spec: -DTYPE_BITS[spec[1]])
    document: dict[str, object] = {"__metadata__": {"format": "pt", **(notes or {})}}
    spans: list[tuple[TensorSpec, int, int]] = []
    at = 0
    for spec in ordered:
        name, dtype, shape = spec
        end = at + nbytes_of(dtype, shape)
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        spans.append((spec, at, end))
        at = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    entries = {
        name: TensorInfo(name, dtype, shape, file, start + begin, start + end)
        for (name, dtype, shape), begin, end in spans
    }
    return ShardLayout(file, len(text).to_bytes(8, "little") + text, entries, start + at)
