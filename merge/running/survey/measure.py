"""What a merge does to each tensor, measured while it is written: no pass of its own over the models.

Every tensor is measured on pieces of 65,536 entries: on all of them, or on the beginnings of at most four,
evenly spread, which are in the page cache because they have just been merged. Sums are float64, added in the
pieces' order, so the numbers do not depend on threads or blocks.
"""

import threading
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from typing import Literal, Protocol

from torch import Tensor

from merge.kernels.reduce import in_order
from merge.planning.outputs import OutputTensor
from merge.planning.sizing import PIECE_ELEMENTS
from merge.running.chain import Block, Chain, LoadBlock
from merge.running.fused.summing import Summing, Terms, summed
from merge.running.survey.summary import Measured, stride
from merge.running.survey.terms import Given

Extent = Literal["sampled", "full", "none"]
PIECES_SAMPLED = 4
SAMPLE_ENTRIES = 1 << 13
"""Of each sampled piece (whole rows where a method needs them): enough for an angle to within a hundredth."""


class Loops(Protocol):
    """Knows compiled loops for sums."""

    def summing(self, key: Hashable, dtypes: tuple[str, ...], terms: Terms) -> Summing | None:
        """The loop for these terms of inputs of these dtypes, where there is one."""

    def sums_beside(
        self, key: Hashable, terms: Terms, output: OutputTensor, first: int, made: Tensor, *, prepared: bool
    ) -> list[float] | None:
        """The sums of these terms of an output's inputs, from entry ``first`` on, of what was made of them,
        and, if asked, of what preparing steps leave of the task vectors, where a loop can tell.
        """


class Eager:
    """Knows none."""

    def summing(self, *_: object) -> Summing | None:
        """None."""
        return None

    def sums_beside(self, *_: object, prepared: bool) -> list[float] | None:  # noqa: ARG002
        """None."""
        return None


class Surveyor:
    """Takes measurements from any thread; ``measured`` gives them by tensor."""

    def __init__(self, extent: Extent, tensors: int) -> None:
        self._extent = extent
        self._every = stride(extent, tensors)
        self._lock = threading.Lock()
        self._found: dict[str, dict[int, list[float]]] = {}
        self._entries: dict[str, int] = {}
        self._wanted: dict[str, list[tuple[int, int]]] = {}

    def wants(self, position: int) -> bool:
        """Whether the output tensor of this position is measured at all."""
        return self._extent != "none" and position % self._every == 0

    def look(
        self,
        chain: Chain,
        output: OutputTensor,
        first: int,
        merged: Tensor,
        load: LoadBlock,
        loops: Loops,
    ) -> None:
        """Measures the wanted pieces of a block whose merged entries, flat, have just been written.

        ``load`` reads a block of the inputs again, where the loops cannot do it.
        """
        for start, count in self.pieces(chain, first, merged.numel()):
            part = merged[start - first : start - first + count]
            numbers = _beside(chain, output, start, part, loops)
            if numbers is None:
                numbers = _measure(chain, load(chain, start, count), part, loops)
            with self._lock:
                self._found.setdefault(chain.site.name, {})[start] = numbers
                self._entries[chain.site.name] = self._entries.get(chain.site.name, 0) + count

    def measured(self, name: str) -> Measured | None:
        """The sums over the measured pieces of a tensor, which are forgotten here."""
        self._wanted.pop(name, None)
        pieces = self._found.pop(name, None)
        if pieces is None:
            return None
        columns = zip(*(pieces[start] for start in sorted(pieces)), strict=True)
        sums = tuple(in_order(list(column)) for column in columns)
        return Measured(self._entries.pop(name), sums)

    def pieces(self, chain: Chain, first: int, count: int) -> Sequence[tuple[int, int]]:
        """First entry and size of every piece that is measured and begins in this span."""
        found = self._wanted.get(chain.site.name)
        if found is None:
            found = self._wanted[chain.site.name] = self._all_pieces(chain)
        return found[bisect_left(found, (first, 0)) : bisect_left(found, (first + count, 0))]

    def _all_pieces(self, chain: Chain) -> list[tuple[int, int]]:
        total = chain.entries
        size = total if chain.granularity == "tensor" else chain.piece
        pieces = max(1, -(-total // size))
        if self._extent == "full" or pieces <= PIECES_SAMPLED:
            wanted = list(range(pieces))
        else:
            wanted = sorted({(pieces - 1) * place // (PIECES_SAMPLED - 1) for place in range(PIECES_SAMPLED)})
        if self._extent == "sampled" and pieces > 1:
            row = chain.whole if chain.granularity == "row" else 1
            most = min(size, max(1, SAMPLE_ENTRIES // row) * row)
        else:
            most = size
        return [(index * size, min(most, total - index * size)) for index in wanted]


def _beside(
    chain: Chain, output: OutputTensor, first: int, merged: Tensor, loops: Loops
) -> list[float] | None:
    """The sums that ``Measured`` names, over one piece, where loops can make all that they are about."""
    if chain.adjusts:
        return None
    given = Given(output.base is not None, len(output.sources), chain.prepares, False)
    return loops.sums_beside(given, given.terms, output, first, merged, prepared=chain.prepares)


def _measure(chain: Chain, block: Block, merged: Tensor, loops: Loops) -> list[float]:
    """The same of a block that was read."""
    like = block.sources[0]
    result = merged.to(like.dtype).to(like.device).view(block.shape)
    given = Given(block.base is not None, len(block.sources), chain.prepares, chain.adjusts)
    values = [*([] if block.base is None else [block.base]), *block.sources, result]
    values += chain.prepared(block) if chain.prepares else []
    values += [chain.combined(block)] if chain.adjusts else []
    loop = loops.summing(given, ("F32",) * given.inputs, given.terms)
    flat = [value.reshape(-1) for value in values]
    starts = range(0, max(1, flat[0].numel()), PIECE_ELEMENTS)  # a whole tensor has many terms at once
    parts = [_sums([each[at : at + PIECE_ELEMENTS] for each in flat], given, loop) for at in starts]
    return [in_order(column) for column in zip(*parts, strict=True)]


def _sums(values: Sequence[Tensor], given: Given, loop: Summing | None) -> list[float]:
    found = None if loop is None else loop.sums(values)
    return summed(given.terms(values)) if found is None else found
