"""Numbers of a whole tensor (or of all tensors) that a blockwise method needs, measured in streaming passes.

A method declares stats in ``Needs(stats=(...))``. Each is measured *of* some elementwise quantities of the
group (the deltas, unless it says otherwise), takes one or more rounds over the blocks, and adds up exactly:
counts are integers, sums are float64 over fixed pieces in index order. It may read other stats that it names
in ``after``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import floor, isqrt, sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from merge.contract.groups import DeltaGroup, TensorGroup
from merge.errors import MethodMalformed
from merge.kernels import radix
from merge.kernels.reduce import column_sums, in_order, piece_sums

Quantity = Callable[..., Sequence[Tensor]]
"""From (group, p), or (delta, own, p) in a prepare, to the tensors that are measured."""


def deltas_of(group: TensorGroup, p: Any) -> Sequence[Tensor]:  # noqa: ARG001
    """What a combine is measured on by default: every source's delta."""
    return group.deltas


def sources_of(group: TensorGroup, p: Any) -> Sequence[Tensor]:  # noqa: ARG001
    """Every source's own values."""
    return group.sources


def points_of(group: TensorGroup, p: Any) -> Sequence[Tensor]:  # noqa: ARG001
    """Every source's delta where a base is read, else its own values."""
    return group.points


def own_delta(delta: Tensor, own: DeltaGroup, p: Any) -> Sequence[Tensor]:  # noqa: ARG001
    """What a prepare is measured on by default: its delta."""
    return (delta,)


@dataclass(frozen=True)
class Term:
    """What one pass adds up over the entries of ``value``: how many have which upper bits (``high``), which
    lower bits under the upper bits ``bin`` (``low``), how many are not zero, sums over pieces, over single
    ``rows``, or down the ``columns`` of pieces of rows, or nothing.
    """

    what: Literal["high", "low", "nonzero", "sum", "rows", "columns", "nothing"]
    value: Tensor
    bin: int = 0

    def measure(self, piece: int) -> Tensor:
        """int64 counts, or float64 sums of the pieces: one of each, or a row of them."""
        if self.what == "sum":
            return piece_sums(self.value, piece)
        if self.what == "rows":
            return piece_sums(self.value, self.value.shape[1])
        if self.what == "columns":
            return column_sums(self.value, max(1, piece // self.value.shape[1]))
        if self.what == "nonzero":
            return torch.count_nonzero(self.value)
        if self.what == "nothing":
            return torch.zeros(0, dtype=torch.int64)
        flat = self.value.reshape(-1).to(torch.float32)
        return radix.count_high(flat) if self.what == "high" else radix.count_low(flat, self.bin)


class Stat(ABC):
    """One thing to measure. ``of`` gives the quantities; ``after`` the stats it needs first.

    ``when`` names a knob and the values of it that make the stat necessary; otherwise it is not measured.
    ``scope`` names a knob that says ``tensor`` or ``global`` (or another value that means ``everywhere``);
    without one the stat is per tensor. Over all tensors it is measured on those of the same sources together;
    ``by_place`` on all, whichever models are in the sources' places.
    """

    rounds = 1
    at_once = False
    """Whether ``whole`` gives the value of a small tensor."""

    def __init__(
        self,
        of: Quantity | None = None,
        *,
        after: tuple["Stat | type[Stat]", ...] = (),
        when: tuple[str, tuple[str, ...]] | None = None,
        scope: str | None = None,
        everywhere: str = "global",
        by_place: bool = False,
    ) -> None:
        self.of = of
        self.after = after
        self.when = when
        self.scope = scope
        self.everywhere = everywhere
        self.by_place = by_place

    def needed(self, p: Any) -> bool:
        """Whether these settings make use of the stat."""
        return self.when is None or getattr(p, self.when[0]) in self.when[1]

    def is_global(self, p: Any) -> bool:
        """Whether it is measured over all tensors at once."""
        return self.scope is not None and getattr(p, self.scope) == self.everywhere

    def describe(self) -> dict[str, Any]:
        """What the catalogue says of it."""
        told = {"stat": type(self).__name__, "rounds": self.rounds}
        if self.when:
            told |= {"when": {self.when[0]: list(self.when[1])}}
        if self.everywhere != "global":
            told |= {"everywhere": self.everywhere}
        return told | ({"scope": self.scope} if self.scope else {})

    def known(self, p: Any, quantities: int) -> Any:  # noqa: ARG002
        """The value where it follows from the settings alone, else ``None``; asked only where ``of`` is the
        default.
        """
        return None

    def measure(self, values: Sequence[Tensor], p: Any, piece: int, so_far: Any) -> list[Tensor]:
        """What one block adds in this round. ``so_far`` is the result of the last round; threads may run it
        at once. Only stats that are no ``terms`` define it.
        """
        return [term.measure(piece) for term in self.terms(values, p, so_far)]

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:  # noqa: ARG002
        """What this round adds up, which is what compiled loops can do."""
        raise MethodMalformed(f"{type(self).__name__} says neither how to measure nor in what terms")

    def whole(self, values: Sequence[Tensor], p: Any) -> Any:  # noqa: ARG002
        """The value from all entries of a small tensor together; asked only where ``at_once``."""
        raise MethodMalformed(f"{type(self).__name__} cannot measure a tensor at once")

    @property
    def ranks_nonzero(self) -> bool:
        """Whether ``ranks_at`` are ranks among what is not zero."""
        return False

    def ranks_at(self, p: Any, filled: Sequence[int]) -> list[tuple[int, ...]] | None:  # noqa: ARG002
        """Where the value is no more than the magnitudes at certain ranks: these, for each quantity, of which
        so many entries are ranked.
        """
        return None

    def value_at(self, found: Sequence[Sequence[float]]) -> Any:  # noqa: ARG002
        """The value from the magnitudes at ``ranks_at``."""
        raise MethodMalformed(f"{type(self).__name__} is not made of magnitudes at ranks")

    def in_terms(self) -> bool:
        """Whether ``terms`` tells all: no class has defined ``measure`` since ``terms`` was."""
        order = [name for kind in type(self).__mro__ for name in ("terms", "measure") if name in vars(kind)]
        return order[0] == "terms" and type(self).terms is not Stat.terms

    @abstractmethod
    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:
        """The result of a round; after the last round, the value."""

    @abstractmethod
    def part(self) -> "Part":
        """An empty place to add blocks to."""


class Part(ABC):
    """What is known in the middle of a round; ``tensor`` is the name of the one it is about, once that is
    measured.
    """

    tensor = ""

    @abstractmethod
    def add(self, first_piece: int, block: list[Tensor]) -> None:
        """Takes in what ``measure`` gave for a block that starts at this piece, which is kept as it is, as
        others may have been given it too; called under a lock, in any order.
        """

    @abstractmethod
    def absorb(self, other: Any) -> None:
        """Takes in the part of the next tensor, for a stat over several; called in the tensors' order."""


class Counts(Part):
    """Integer counts: order does not matter."""

    def __init__(self) -> None:
        self.totals: list[Tensor] = []

    def add(self, first_piece: int, block: list[Tensor]) -> None:  # noqa: ARG002
        if self.totals:
            pairs = zip(self.totals, block, strict=True)
            self.totals = [total.to(torch.int64) + counts for total, counts in pairs]
        else:
            self.totals = list(block)

    def absorb(self, other: "Counts") -> None:
        self.add(0, other.totals)


class Pieces(Part):
    """Partial sums by index of the piece, added up in that order at the end; tensors in theirs. Kept as plain
    numbers: small tensors that live on would pin the large blocks of memory they were cut from.
    """

    def __init__(self) -> None:
        self.blocks: dict[int, list[list[float]]] = {}
        self.tensors: list[list[float]] = []

    def add(self, first_piece: int, block: list[Tensor]) -> None:
        self.blocks[first_piece] = [sums.tolist() for sums in block]

    def absorb(self, other: "Pieces") -> None:
        self.tensors.append(other.totals())

    def totals(self) -> list[float]:
        """The sum of every quantity."""
        if self.tensors:
            return [in_order(list(column)) for column in zip(*self.tensors, strict=True)]
        ordered = [self.blocks[key] for key in sorted(self.blocks)]
        return [
            in_order([value for sums in column for value in sums]) for column in zip(*ordered, strict=True)
        ]


class Threshold(Stat):
    """The magnitude that an entry must reach to be among the largest ``share`` of its tensor (or of all
    tensors).

    At least one entry is kept, and *all* entries equal to the threshold are. Exact on float32 magnitudes.
    ``share`` names the knob; the value is a tuple, one threshold a quantity, 0.0 where everything is kept.
    """

    rounds = 2
    at_once = True

    def __init__(
        self, of: Quantity | None = None, *, share: str = "density", scope: str | None = "scope", **more: Any
    ):
        super().__init__(of, scope=scope, **more)
        self.share = share

    def describe(self) -> dict[str, Any]:
        """Names the knob, which must not vary between tensors where the scope is global."""
        return super().describe() | {"share": self.share}

    def is_global(self, p: Any) -> bool:
        """Per tensor where the method has no such knob."""
        return self.scope is not None and getattr(p, self.scope, "tensor") == "global"

    def known(self, p: Any, quantities: int) -> Any:
        """All zero where nothing is trimmed."""
        return (0.0,) * quantities if all(share >= 1 for share in self._shares(p, quantities)) else None

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:
        """Counts by upper bits in round one, by lower bits in round two."""
        found = []
        for place, (value, share) in enumerate(zip(values, self._shares(p, len(values)), strict=True)):
            if share >= 1:
                found.append(Term("nothing", value))
            elif so_far is None:
                found.append(Term("high", value))
            else:
                found.append(Term("low", value, so_far[place][0]))
        return found

    def whole(self, values: Sequence[Tensor], p: Any) -> Any:
        """By selection instead of counting."""
        shares = zip(values, self._shares(p, len(values)), strict=True)
        return tuple(0.0 if s >= 1 else radix.largest(v, _rank(s, v.numel())) for v, s in shares)

    def ranks_at(self, p: Any, filled: Sequence[int]) -> list[tuple[int, ...]] | None:
        """One rank a quantity; none where everything is kept."""
        shares = zip(self._shares(p, len(filled)), filled, strict=True)
        return [() if share >= 1 else (_rank(share, entries),) for share, entries in shares]

    def value_at(self, found: Sequence[Sequence[float]]) -> Any:
        """The thresholds."""
        return tuple(each[0] if each else 0.0 for each in found)

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:
        """(bin, rank in it) for every quantity, then the thresholds."""
        found: list[Any] = []
        for place, share in enumerate(self._shares(p, len(part.totals))):
            if share >= 1:
                found.append(0.0 if so_far else (0, 1))
                continue
            counts = part.totals[place]
            if so_far is None:
                found.append(radix.find_bin(counts, _rank(share, elements)))
            else:
                high, rank = so_far[place]
                found.append(radix.as_float(high, radix.find_bin(counts, rank)[0]))
        return tuple(found)

    def part(self) -> Part:
        """Counts."""
        return Counts()

    def _shares(self, p: Any, quantities: int) -> tuple[float, ...]:
        share = getattr(p, self.share)
        return share if isinstance(share, tuple) else (share,) * quantities


def _rank(share: float, elements: int) -> int:
    return max(1, floor(Decimal(repr(share)) * elements))


class Sum(Stat):
    """The sum of each quantity over the tensor, as a tuple of floats."""

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:  # noqa: ARG002
        """float64 sums of the pieces."""
        return [Term("sum", value) for value in values]

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:  # noqa: ARG002
        """Pieces in index order, then tensors in their order."""
        return tuple(part.totals())

    def part(self) -> Part:
        """Pieces."""
        return Pieces()


class Norm(Sum):
    """The Euclidean norm of each quantity, as a tuple of floats."""

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:
        """Squares are exact: the product of two float32 fits a float64."""
        return super().terms([value.to(torch.float64).square() for value in values], p, so_far)

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:
        """Roots of the sums."""
        return tuple(sqrt(total) for total in super().close(part, p, elements, so_far))


class Gram(Sum):
    """All inner products of the quantities: a tuple of k tuples of k floats, symmetric."""

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:  # noqa: ARG002
        """The upper triangle, row by row."""
        return [Term("sum", product) for product in self._products(values)]

    def measure(self, values: Sequence[Tensor], p: Any, piece: int, so_far: Any) -> list[Tensor]:  # noqa: ARG002
        """The same, one product in memory at a time."""
        return [piece_sums(product, piece) for product in self._products(values)]

    def _products(self, values: Sequence[Tensor]) -> Iterator[Tensor]:
        wide = [value.to(torch.float64) for value in values]
        for place, one in enumerate(wide):
            for other in wide[place:]:
                yield one * other

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:  # noqa: ARG002
        """The full matrix."""
        triangle = iter(part.totals())
        rows = range(isqrt(2 * len(part.totals())))
        upper = {(i, j): next(triangle) for i in rows for j in rows if j >= i}
        return tuple(tuple(upper[min(i, j), max(i, j)] for j in rows) for i in rows)
