"""What a merge does to each tensor, measured while it is written: no pass of its own over the models.

Every tensor is measured on pieces of 65,536 entries: on all of them, or on the beginnings of at most four,
evenly spread, which are in the page cache because they have just been merged. Sums are float64, added in the
pieces' order, so the numbers do not depend on threads or blocks.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from merge.chain import Block, Chain
from merge.kernels.reduce import in_order, piece_sums
from merge.survey.summary import Measured

Extent = Literal["sampled", "full", "none"]
PIECES_SAMPLED = 4
SAMPLE_ENTRIES = 1 << 13
"""Of each sampled piece (whole rows where a method needs them): enough for an angle to within a hundredth."""
MOST_TENSORS = 1024
"""Tensors that are measured where not all pieces are; of more, an even choice."""


class Surveyor:
    """Takes measurements from any thread; ``measured`` gives them by tensor."""

    def __init__(self, extent: Extent, tensors: int) -> None:
        self._extent = extent
        self._every = 1 if extent == "full" else -(-max(tensors, 1) // MOST_TENSORS)
        self._lock = threading.Lock()
        self._found: dict[str, dict[int, list[float]]] = {}
        self._entries: dict[str, int] = {}

    def wants(self, position: int) -> bool:
        """Whether the output tensor of this position is measured at all."""
        return self._extent != "none" and position % self._every == 0

    def look(
        self, chain: Chain, first: int, merged: Tensor, load: Callable[[Chain, int, int], Block]
    ) -> None:
        """Measures the wanted pieces of a block whose merged entries, flat, have just been written.

        ``load`` reads a block of the inputs again.
        """
        for start, count in self._pieces(chain, first, merged.numel()):
            block = load(chain, start, count)
            numbers = _measure(chain, block, merged[start - first : start - first + count])
            with self._lock:
                self._found.setdefault(chain.site.name, {})[start] = numbers
                self._entries[chain.site.name] = self._entries.get(chain.site.name, 0) + count

    def measured(self, name: str) -> Measured | None:
        """The sums over the measured pieces of a tensor, which are forgotten here."""
        pieces = self._found.pop(name, None)
        if pieces is None:
            return None
        columns = zip(*(pieces[start] for start in sorted(pieces)), strict=True)
        sums = tuple(in_order(list(column)) for column in columns)
        return Measured(self._entries.pop(name), sums)

    def _pieces(self, chain: Chain, first: int, count: int) -> Sequence[tuple[int, int]]:
        total = chain.entries
        size = total if chain.granularity == "tensor" else chain.piece
        pieces = max(1, -(-total // size))
        if self._extent == "full" or pieces <= PIECES_SAMPLED:
            wanted = list(range(pieces))
        else:
            wanted = sorted({(pieces - 1) * place // (PIECES_SAMPLED - 1) for place in range(PIECES_SAMPLED)})
        if self._extent == "sampled" and pieces > 1:
            row = chain.columns if chain.granularity == "row" else 1
            most = min(size, max(1, SAMPLE_ENTRIES // row) * row)
        else:
            most = size
        spans = ((index * size, min(most, total - index * size)) for index in wanted)
        return [(start, length) for start, length in spans if first <= start < first + count]


def _measure(chain: Chain, block: Block, merged: Tensor) -> list[float]:
    """The sums that ``Measured`` names, over one piece."""
    result = merged.to(block.sources[0].dtype).to(block.sources[0].device).view(block.shape)
    center = block.base if block.base is not None else result
    deltas = [source - center for source in block.sources]
    moved = result - center
    kept = deltas if block.base is None else chain.prepared(block)
    wide = [delta.reshape(-1).to(torch.float64) for delta in deltas]
    products = [_sum(wide[i] * wide[j]) for i in range(len(wide)) for j in range(i, len(wide))]
    signs = torch.stack([delta.sign() for delta in deltas])
    conflict = (signs.amax(dim=0) > 0) & (signs.amin(dim=0) < 0)
    counts = [conflict.sum(), moved.count_nonzero()]
    for sign, prepared in zip(signs, kept, strict=True):
        followed = (sign == moved.sign()) & (sign != 0)
        counts += [sign.count_nonzero(), prepared.count_nonzero(), followed.sum()]
    length = _sum(moved.to(torch.float64).square())
    return [*products, length, *map(float, counts), _before(chain, block, center, length)]


def _before(chain: Chain, block: Block, center: Tensor, length: float) -> float:
    """Squared length of the merged task vector before the adjusting steps; ``length`` without them."""
    if not chain.adjusts:
        return length
    return _sum((chain.combined(block) - center).to(torch.float64).square())


def _sum(values: Tensor) -> float:
    return float(piece_sums(values, max(values.numel(), 1)).sum())
