"""What a measurement will take, told from headers and config alone: no torch."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from merge.arch.roles import tower_and_layer
from merge.checkpoint.index import ModelIndex
from merge.learn.statistics import GRADIENT_KINDS

FLOAT32 = 4
BATCH_TOKENS = 2048
"""Tokens that go through a block at a time (``merge.learn.batches``)."""
_WORKING = 6
"""Tensors as wide as the widest of a block that are alive at once while it runs."""
_SHARED_LAYERS = frozenset({"albert", "zamba", "zamba2", "universal_transformer"})
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depths")


def can_stream(config: Mapping[str, Any]) -> bool | None:
    """Whether a model can be run block by block: yes, no, or not known before it is tried.

    No where layers share their weights or are used several times; yes where layers are counted.
    """
    kind = str(config.get("model_type", ""))
    if kind in _SHARED_LAYERS or int(config.get("num_hidden_groups") or 0) > 0:
        return False
    parts = [config, *(value for key, value in config.items() if key.endswith("config"))]
    counted = any(isinstance(part, Mapping) and any(key in part for key in _COUNTS) for part in parts)
    return True if counted else None


def bytes_whole(index: ModelIndex) -> int:
    """Memory of all weights as float32, where a model cannot be run block by block."""
    return index.parameters * FLOAT32


def largest_stage(index: ModelIndex, kinds: Iterable[str]) -> int:
    """An upper estimate of the memory one block takes: weights, statistics and what is computed from them."""
    asked = set(kinds)
    blocks: defaultdict[tuple[str, int], list[tuple[int, ...]]] = defaultdict(list)
    for name, info in index.tensors.items():
        place = tower_and_layer(name)
        if place is not None:
            blocks[place].append(info.shape)
    if not blocks:
        return bytes_whole(index)
    copies = 3 if asked & GRADIENT_KINDS.keys() else 1
    return max(_of_block(shapes, copies, "gram" in asked) for shapes in blocks.values())


def _of_block(shapes: list[tuple[int, ...]], copies: int, gram: bool) -> int:
    sizes = [_numel(shape) for shape in shapes]
    widest = max((max(shape) for shape in shapes if len(shape) == 2), default=0)
    needed = sum(sizes) * FLOAT32 * copies + BATCH_TOKENS * widest * FLOAT32 * _WORKING
    return needed + (_grams(shapes) if gram else 0)


def _grams(shapes: list[tuple[int, ...]]) -> int:
    """q, k and v share a Gram matrix and gate and up another, so about every second matrix has its own."""
    of_width: defaultdict[int, int] = defaultdict(int)
    for shape in shapes:
        if len(shape) in (2, 3):
            of_width[shape[-1]] += 1 if len(shape) == 2 else shape[0]
    return sum(width * width * FLOAT32 * -(-count // 2) for width, count in of_width.items())


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
