"""WIDEN: every column of a weight is weighted by how far its length and its direction went from the base.

With columns k (input channels; of an embedding, tokens): dm_i = | |x_i[:,k]| - |base[:,k]| |, dd_i = 1 -
cos(x_i[:,k], base[:,k]); r is the rank of dm_i (dd_i) among the columns of its source, 0 to (n - 1) / n. The
share is softmax over the sources of r, but ``calibration`` where r_i > above * mean(r_i). x = base + scale *
sum w_i (share of dm_i + share of dd_i) / 2 * tau_i. Vectors: the same once, with |tau_i| in place of r_i.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from merge.contract.groups import Site, TensorGroup
from merge.contract.method import Kind, Lines, Needs, method
from merge.contract.params import knob, params
from merge.contract.rows import Aligned, ColumnNumbers, MatrixSums
from merge.contract.stats import Part, Stat, Term
from merge.errors import MethodMalformed
from merge.kernels.curves import decay
from merge.kernels.reduce import column_sums, piece_sums
from merge.kernels.row_ranks import row_ranks
from merge.kernels.sums import total, weighted_sum

TOGETHER = 1 << 18
"""About so many products are formed at a time."""
FAR = 50.0
"""Beyond this distance a softmax gives nothing."""


@params
class Widen:
    above: float = knob(
        1.0,
        "A column counts as important to a source where its rank is more than this times the mean rank "
        "(above_average_value_ratio).",
        ge=0,
        by_depth=True,
    )
    calibration: float = knob(
        1.0, "The share of what counts as important (score_calibration_value).", ge=0, by_depth=True
    )
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)
    normalize: bool = knob(
        False,
        "Divide where the shares add up to more than 1, so that what all changed alike is not overdone.",
    )
    equal: Literal["mean", "position"] = knob(
        "mean",
        "How equal columns rank: all at their mean, or one after another by position (the published code, "
        "which so prefers the columns on the right).",
    )
    vectors: Literal["widen", "mean"] = knob(
        "widen", "Norms and biases: weighted entry by entry by the size of the change, or averaged."
    )


@dataclass(frozen=True)
class RowShares(Aligned):
    """Shares of rows that stand for columns, for each source: float32."""

    shares: Sequence[Tensor]

    def at(self, first: int, shape: tuple[int, ...]) -> Sequence[Tensor]:
        """Those of the rows at hand."""
        row = first // max(1, shape[1])
        return [share[row : row + shape[0]].unsqueeze(1) for share in self.shares]

    def by_row(self) -> Sequence[Tensor]:
        """All of them."""
        return self.shares


class _Lines(list[Tensor]):
    """Tensors whose rows stand for columns."""


class _Shares(Stat):
    """Of a base and its changes as ``_matrices`` gives them: sums of products down the columns, (pieces of
    rows, columns) of each product where one matrix goes on in other blocks, else (matrices, 1, columns); or
    along the rows that stand for columns.
    """

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:  # noqa: ARG002
        """Of one matrix."""
        if isinstance(values, _Lines):
            return [Term("rows", product) for product in _products(values)]
        if not all(value.dim() == 2 for value in values):
            raise MethodMalformed("only the columns of one matrix are told in terms")
        return [Term("columns", product) for product in _products(values)]

    def measure(self, values: Sequence[Tensor], p: Any, piece: int, so_far: Any) -> list[Tensor]:  # noqa: ARG002
        """The same, one product in memory at a time; and of many matrices."""
        if not values or values[0].dim() == 2:
            what: Literal["rows", "columns"] = "rows" if isinstance(values, _Lines) else "columns"
            return [Term(what, product).measure(piece) for product in _products(values)]
        matrices, rows, columns = values[0].shape
        found = torch.zeros(2 * len(values) - 1, matrices, 1, columns, dtype=torch.float64)
        height = max(1, TOGETHER // columns)
        for matrix in range(matrices):
            for first in range(0, rows, height):
                part = [value[matrix, first : first + height] for value in values]
                for sums, product in zip(found, _products(part), strict=True):
                    sums[matrix] += column_sums(product, height).to(sums.device)
        return list(found)

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:  # noqa: ARG002
        """``ColumnNumbers`` or ``RowShares``; ``None`` for a vector."""
        if part.total:
            return ColumnNumbers(_of_columns([sums.unsqueeze(0) for sums in part.total], p), 0)
        if not part.lines:
            return None
        sums = part.joined()
        if sums[0].dim() == 1:
            found = _of_columns([each.unsqueeze(0) for each in sums], p)
            return RowShares([share[0].to(torch.float32) for share in found])
        return ColumnNumbers(_of_columns([each.squeeze(1) for each in sums], p), elements // len(sums[0]))

    def part(self) -> Part:
        """Sums of products."""
        return MatrixSums()


def _matrices(group: TensorGroup, p: Widen) -> Sequence[Tensor]:  # noqa: ARG001
    """The base and the changes, such that columns run down: rows of one matrix, or (matrices, rows, columns);
    or ``_Lines``. None of a vector. Stacked experts are so many matrices, kernels one of (out, rest).
    """
    if group.site.flat:
        return []
    kind = _Lines if _in_rows(group) else list
    return kind(_upright(tensor, group.site) for tensor in (group.base, *group.deltas))


def _in_rows(group: TensorGroup) -> bool:
    """Whether every row stands for a column."""
    return len(group.site.shape) == 2 and (group.role == "embed" or group.site.turned)


def _upright(tensor: Tensor, site: Site) -> Tensor:
    """Rows of one matrix, or (matrices, outputs, inputs)."""
    if not site.stacked:
        return tensor.view(-1, site.columns)
    matrices = tensor.view(-1, *site.shape[1:])
    return matrices.mT if site.turned else matrices


SHARES = _Shares(_matrices)


@method(
    title="WIDEN",
    kind=Kind.COMBINE,
    granularity="row",
    paper="arXiv:2408.03092",
    version=3,
    needs=Needs(base=True, stats=(SHARES,)),
    lines=Lines("matrices", 4.0, 7.0),
)
def widen(group: TensorGroup, p: Widen) -> Tensor:
    """Made to merge an instruction-tuned model with one that was pretrained further (a language, a domain),
    whose changes are of quite different size: what counts is how a column ranks within its own source,
    not how much it moved. Columns that matter to several sources are added up at full share, so equal
    sources do not give themselves back (unless normalized). One source alone is taken nearly whole: at
    calibration 1 exactly. Weights multiply the task vectors. Costs one reading more.
    """
    site = group.site
    if site.flat:
        shares = _mean(group.deltas) if p.vectors == "mean" else _of_entries(group.deltas, p)
    else:
        shares = group.stat(SHARES)
    if p.normalize:
        whole = total(shares).clamp_(min=1)
        shares = [share / whole for share in shares]
    factors = [
        (share * weight * p.scale).to(group.base.dtype)
        for share, weight in zip(shares, group.weights, strict=True)
    ]
    changes = [_upright(delta, site) for delta in group.deltas]
    merged = weighted_sum(changes, factors).add_(_upright(group.base, site))
    return (merged.mT if site.stacked and site.turned else merged).reshape(group.base.shape)


def _mean(deltas: Sequence[Tensor]) -> list[Tensor]:
    return [torch.full((), 1 / len(deltas), dtype=torch.float64, device=d.device) for d in deltas]


def _of_entries(deltas: Sequence[Tensor], p: Widen) -> list[Tensor]:
    """Shares in vectors, one a row, by the sizes of their entries' changes."""
    sizes = [delta.abs().double() for delta in deltas]
    columns = sizes[0].shape[1]
    means = [piece_sums(size, columns).div_(columns).unsqueeze(1) for size in sizes]
    return _shares(sizes, [size > mean * p.above for size, mean in zip(sizes, means, strict=True)], p)


def _of_columns(sums: Sequence[Tensor], p: Widen) -> list[Tensor]:
    """Shares of the columns by the sums of each product, (matrices, columns), ranked within each matrix."""
    own, moves = sums[0], zip(sums[1::2], sums[2::2], strict=True)
    ranks = [[row_ranks(gap, shared=p.equal == "mean") for gap in _gaps(own, *each)] for each in moves]
    lengths, turns = (_by_rank(each, p) for each in zip(*ranks, strict=True))
    return [length.add_(turn).div_(2) for length, turn in zip(lengths, turns, strict=True)]


def _by_rank(ranks: Sequence[Tensor], p: Widen) -> list[Tensor]:
    columns = ranks[0].shape[1]
    mean = (columns - 1) / (2 * columns)
    scores = [rank.double() / columns for rank in ranks]
    return _shares(scores, [score > p.above * mean for score in scores], p)


def _shares(scores: Sequence[Tensor], important: Sequence[Tensor], p: Widen) -> list[Tensor]:
    """The softmax over the sources, but for what is important."""
    highest = functools.reduce(torch.maximum, scores)
    powers = [decay((highest - score).clamp_(max=FAR), FAR) for score in scores]
    whole = total(powers)
    return [
        (power / whole).masked_fill_(chosen, p.calibration)
        for power, chosen in zip(powers, important, strict=True)
    ]


def _gaps(own: Tensor, cross: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """dm and dd of every column of one source, float64, from its products with the base and itself.

    Reckoned from products with the change, so that columns which did not move have gaps of exactly 0. A
    column of zeros has no direction: any column that is not zero is at right angles to it.
    """
    ours, theirs = own.sqrt(), (own + 2 * cross + moved).clamp_(min=0).sqrt()
    both = ours + theirs
    gap = (2 * cross + moved) / torch.where(both > 0, both, 1)
    product = 2 * ours * theirs
    turn = (moved - gap * gap).clamp_(min=0) / torch.where(product > 0, product, 1)
    return gap.abs(), torch.where(product > 0, turn, (both > 0).double())


def _products(values: Sequence[Tensor]) -> Iterator[Tensor]:
    """<base, base>, then <base, tau> and <tau, tau> of each source, entry by entry, in float64."""
    if not values:
        return
    base = values[0].to(torch.float64)
    yield base * base
    for value in values[1:]:
        change = value.to(torch.float64)
        yield base * change
        yield change * change
