"""What a measurement will take, told from headers and config alone: no torch.

The estimates of memory are upper bounds, held against measured runs (``tests/merge/learn/test_forecast.py``)
of one to two times what was seen. What decides them: a block's weights (twice, since the allocator keeps
those of the block before), what is computed from a batch in it, the Gram matrices; of gradients a block's
weights five times (weights, gradients, squares, sums so far, their sum), the weights outside the blocks and
what is computed on the way to a loss over the whole vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from merge.arch.roles import role_of, tied_names, tower_and_layer
from merge.checkpoint.index import ModelIndex
from merge.contract.informed import KINDS
from merge.learn.labels import EXACT, labels_told

FLOAT32 = 4
BATCH_TOKENS = 2048
"""Tokens that go through a block at a time."""
DOCUMENTS, TOKENS = 256, 512
LARGE_BYTES = 64 << 20
"""Embeddings and heads larger than this (as float32) are not filled as a whole."""
GROUP_BYTES = 256 << 20
"""What one block gives to a group of sequences, which is passed back from block to block, is at most this
large.
"""
GROUPS = 8
"""At least so many groups where there are as many sequences."""
FLOPS_PER_SECOND = 3.0e10
"""What two busy cores do in a model's blocks, cautiously; a graphics card does a thousand times that."""
_FIXED = 96 << 20
_WORKING, _TRACED = 8, 24
"""Tensors as wide as the widest of a block that are alive at once in it, without and with gradients."""
_COPIES = 5
"""Of a stage's weights with gradients: weights, gradients, squares, the sums so far, and their new sum."""
_BACKWARD = 4
"""Passes forward that a pass forward and backward, with what is computed twice, takes as long as."""
_SECONDS_A_MODEL = 0.5
"""What building a model and cutting texts into tokens takes."""
_SECONDS_A_STEP = 0.01
"""What going through a block with one sequence takes besides its arithmetic."""
_SHARED_LAYERS = frozenset({"albert", "zamba", "zamba2", "universal_transformer"})
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depths")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class _Blocks:
    """Shapes of a model's weights: of each block, and of what lies outside (by role, tied ones once)."""

    inside: Mapping[tuple[str, int], list[tuple[int, ...]]]
    outside: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    @property
    def outside_bytes(self) -> list[int]:
        """Of each weight outside the blocks, as float32."""
        return [_numel(shape) * FLOAT32 for _, shape in self.outside]

    @property
    def vocabulary(self) -> int:
        """How wide the widest thing is that a head could give out."""
        return max((shape[0] for role, shape in self.outside if role in ("head", "embed")), default=0)


def can_stream(config: Mapping[str, Any]) -> bool | None:
    """Whether a model can be run block by block: yes, no, or not known before it is tried.

    No where layers share their weights or are used several times; yes where layers are counted.
    """
    kind = str(config.get("model_type", ""))
    if kind in _SHARED_LAYERS or int(config.get("num_hidden_groups") or 0) > 0:
        return False
    counted = any(any(key in part for key in _COUNTS) for part in _parts(config))
    return True if counted else None


def bytes_whole(index: ModelIndex, kinds: Iterable[str] = ()) -> int:
    """Memory of all weights as float32, where a model cannot be run block by block; of what is summed up for
    them too where ``kinds`` take gradients.
    """
    copies = _COPIES if _backward(kinds) else 1
    return index.parameters * FLOAT32 * copies


def largest_stage(
    index: ModelIndex, kinds: Iterable[str], documents: int = DOCUMENTS, tokens: int = TOKENS
) -> int:
    """An upper estimate of the memory a measurement takes, one block at a time, on at most so many
    ``documents`` of ``tokens`` each.
    """
    asked, blocks = set(kinds), _blocks_of(index)
    if not blocks.inside:
        return bytes_whole(index, asked)
    heads = _greatest(index.config, _HEADS)
    needed = 0
    if _backward(asked) < len(asked):
        stages = [_observing(shapes, heads, tokens, _square(asked)) for shapes in blocks.inside.values()]
        needed = max(stages) + _small_outside(blocks, tokens)
    if _backward(asked):
        stages = [_differentiating(shapes, heads, tokens) for shapes in blocks.inside.values()]
        inside = max(stages) + sum(blocks.outside_bytes)
        passed = -(-documents // GROUPS) * tokens * _greatest(index.config, _WIDTHS) * FLOAT32
        backward = max(inside, _outside_gradients(blocks, tokens)) + min(passed, GROUP_BYTES)
        needed = max(needed, backward)
    return _FIXED + needed


def scratch_bytes(
    index: ModelIndex, kinds: Iterable[str], documents: int = DOCUMENTS, tokens: int = TOKENS
) -> int:
    """Disk that a measurement takes only meanwhile: what leaves a block for every document, twice; with
    gradients what leaves every block for a group of them, and the sums of the group before.
    """
    asked = set(kinds)
    width = _greatest(index.config, _WIDTHS)
    state = tokens * width * FLOAT32
    needed = 2 * documents * state if _backward(asked) < len(asked) else 0
    if _backward(asked):
        group = max(1, min(-(-documents // GROUPS), GROUP_BYTES // max(state, 1)))
        kept = group * state * (len(_blocks_of(index).inside) + 2)
        needed = max(needed, kept + 2 * index.parameters * FLOAT32)
    return needed


def seconds(index: ModelIndex, kinds: Iterable[str], documents: int, tokens: int) -> float:
    """About how long two CPU cores take for a model's statistics of ``kinds``: nothing but an order of
    magnitude.
    """
    asked = set(kinds)
    blocks = _blocks_of(index)
    backward = _backward(asked)
    observed = backward < len(asked)
    if EXACT in asked:
        backward += labels_told(index.config, tokens) - 1
    chosen, experts = _greatest(index.config, ("num_experts_per_tok",)), _greatest(index.config, _EXPERTS)
    share = chosen / experts if chosen and experts else 1.0
    inside = sum(_work(name, info.shape, share) for name, info in index.tensors.items() if _inside(name))
    if not blocks.inside:
        inside = index.parameters
    head = max((_numel(shape) for role, shape in blocks.outside if role in ("head", "embed")), default=0)
    work = inside * (observed + backward * _BACKWARD)
    work += head * backward * _BACKWARD
    if _square(asked):
        work += sum(_grams(shapes) / FLOAT32 for shapes in blocks.inside.values())
    steps = documents * (len(blocks.inside) + 1) * backward
    besides = _SECONDS_A_MODEL + steps * _SECONDS_A_STEP
    return 2.0 * documents * tokens * work / FLOPS_PER_SECOND + besides


def _backward(kinds: Iterable[str]) -> int:
    """How many of the kinds take gradients."""
    return sum(KINDS[kind].gradients for kind in set(kinds))


def _square(kinds: Iterable[str]) -> bool:
    return any(KINDS[kind].layout == "square" for kind in kinds)


def _inside(name: str) -> bool:
    return tower_and_layer(name) is not None


def _work(name: str, shape: tuple[int, ...], share: float) -> float:
    """Multiplications a token takes part in; of experts only those that are chosen."""
    if len(shape) < 2:
        return 0.0
    return _numel(shape) * (share if len(shape) == 3 or ".experts." in name else 1.0)


def _blocks_of(index: ModelIndex) -> _Blocks:
    inside: defaultdict[tuple[str, int], list[tuple[int, ...]]] = defaultdict(list)
    tied = tied_names(index.config, list(index.tensors))
    found = _Blocks(inside)
    for name, info in index.tensors.items():
        place = tower_and_layer(name)
        if place is not None:
            inside[place].append(info.shape)
        elif name not in tied:
            found.outside.append((role_of(name, info.shape, index.config), info.shape))
    return found


def _observing(shapes: list[tuple[int, ...]], heads: int, tokens: int, gram: bool) -> int:
    batch = max(BATCH_TOKENS, tokens)
    weights = 2 * sum(map(_numel, shapes)) * FLOAT32
    attention = heads * batch * tokens * FLOAT32
    computed = batch * _widest(shapes) * FLOAT32 * _WORKING
    return weights + attention + computed + (2 * _grams(shapes) if gram else 0)


def _differentiating(shapes: list[tuple[int, ...]], heads: int, tokens: int) -> int:
    """One sequence at a time."""
    weights = _COPIES * sum(map(_numel, shapes)) * FLOAT32
    attention = 3 * heads * tokens**2 * FLOAT32
    return weights + attention + tokens * _widest(shapes) * FLOAT32 * _TRACED


def _small_outside(blocks: _Blocks, tokens: int) -> int:
    """Small weights outside the blocks are held whole, and what a small head gives out for two batches."""
    whole = [size for size in blocks.outside_bytes if size <= LARGE_BYTES]
    head = any(
        role in ("head", "embed") and _numel(shape) * FLOAT32 <= LARGE_BYTES for role, shape in blocks.outside
    )
    given = 2 * max(BATCH_TOKENS, tokens) * blocks.vocabulary * FLOAT32 if head else 0
    return sum(whole) + given


def _outside_gradients(blocks: _Blocks, tokens: int) -> int:
    weights, given = sum(blocks.outside_bytes), tokens * blocks.vocabulary * FLOAT32
    return max(2 * weights + 7 * given, _COPIES * weights + 5 * given)


def _grams(shapes: list[tuple[int, ...]]) -> int:
    """q, k and v share a Gram matrix and gate and up another, so about every second matrix has its own."""
    of_width: defaultdict[int, int] = defaultdict(int)
    for shape in shapes:
        if len(shape) in (2, 3):
            of_width[shape[-1]] += 1 if len(shape) == 2 else shape[0]
    return sum(width * width * FLOAT32 * -(-count // 2) for width, count in of_width.items())


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    yield from (
        value for key, value in config.items() if key.endswith("config") and isinstance(value, Mapping)
    )


def _greatest(config: Mapping[str, Any], keys: Iterable[str]) -> int:
    found = (part.get(key) for part in _parts(config) for key in keys)
    return max((value for value in found if isinstance(value, int)), default=0)


def _widest(shapes: list[tuple[int, ...]]) -> int:
    return max((max(shape[-2:]) for shape in shapes if len(shape) in (2, 3)), default=0)


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
