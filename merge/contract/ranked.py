"""Stats of selection: exact values at given ranks of any quantity, and counts of entries."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from merge.contract.stats import Counts, Part, Quantity, Stat, Term
from merge.kernels import radix

Ranks = Callable[[Any, int], Sequence[int]]
"""From (p, entries) to the wanted ranks; 1 is the largest of the entries."""


class Ranked(Stat):
    """The magnitudes that stand at given ranks among all entries of the tensor, largest first, for each
    quantity: a tuple of tuples of floats.

    Exact on float32 magnitudes, in two counting rounds. With ``nonzero`` only entries other than zero are
    ranked. A rank beyond either end is that end; where there is nothing to rank the value is 0.0. Settings
    for which ``idle`` is true make no use of it. ``share`` names the knob that the ranks follow, which must
    not vary between tensors where the scope is global.
    """

    rounds = 2

    def __init__(
        self,
        of: Quantity,
        ranks: Ranks,
        *,
        nonzero: bool = False,
        idle: Callable[[Any], bool] = lambda _: False,
        share: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(of, **more)
        self.ranks = ranks
        self.nonzero = nonzero
        self.idle = idle
        self.share = share

    def describe(self) -> dict[str, Any]:
        """With the knob that the ranks follow."""
        return super().describe() | ({"share": self.share} if self.share else {})

    def needed(self, p: Any) -> bool:
        """Whether these settings make use of it."""
        return super().needed(p) and not self.idle(p)

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:  # noqa: ARG002
        """Counts by upper bits (and of what is not zero) in round one; in round two by lower bits, for every
        upper part that a wanted rank falls into.
        """
        found: list[Term] = []
        for place, value in enumerate(values):
            if so_far is None:
                found += [Term("high", value), Term("nonzero" if self.nonzero else "nothing", value)]
            else:
                found += [Term("low", value, high) for high in _bins(so_far[place])]
        return found

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:
        """(bin, rank in it) for every rank of every quantity, then the magnitudes."""
        if so_far is None:
            pairs = zip(part.totals[::2], part.totals[1::2], strict=True)
            sizes = ((counts, int(filled) if self.nonzero else elements) for counts, filled in pairs)
            return tuple(self._places(p, counts, entries) for counts, entries in sizes)
        counts = iter(part.totals)
        found = []
        for places in so_far:
            low = {high: next(counts) for high in _bins(places)}
            found.append(
                tuple(radix.as_float(h, radix.find_bin(low[h], r)[0]) if r else 0.0 for h, r in places)
            )
        return tuple(found)

    @property
    def ranks_nonzero(self) -> bool:
        """As asked for."""
        return self.nonzero

    def ranks_at(self, p: Any, filled: Sequence[int]) -> list[tuple[int, ...]] | None:
        """The wanted ranks; 0 where there is nothing to rank."""
        return [tuple(min(max(rank, 1), n) for rank in self.ranks(p, max(n, 1))) for n in filled]

    def value_at(self, found: Sequence[Sequence[float]]) -> Any:
        """The magnitudes."""
        return tuple(map(tuple, found))

    def part(self) -> Part:
        """Counts."""
        return Counts()

    def _places(self, p: Any, counts: Tensor, entries: int) -> tuple[tuple[int, int], ...]:
        if not entries:
            return tuple((0, 0) for _ in self.ranks(p, entries))
        return tuple(radix.find_bin(counts, min(max(rank, 1), entries)) for rank in self.ranks(p, entries))


def _bins(places: Sequence[Sequence[int]]) -> list[int]:
    return sorted({high for high, rank in places if rank})


class Count(Stat):
    """How many entries of each quantity are not zero: a tuple of whole numbers."""

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:  # noqa: ARG002
        """One count a quantity."""
        return [Term("nonzero", value) for value in values]

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:  # noqa: ARG002
        """Plain numbers."""
        return tuple(int(count) for count in part.totals)

    def part(self) -> Part:
        """Counts."""
        return Counts()
