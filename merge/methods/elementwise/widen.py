"""WIDEN: every column of a weight is weighted by how far its length and its direction went from the base.

With columns k (input channels; of an embedding, tokens): dm_i = | |x_i[:,k]| - |base[:,k]| |, dd_i = 1 -
cos(x_i[:,k], base[:,k]); r is the rank of dm_i (dd_i) among the columns of its source, 0 to (n - 1) / n. The
share is softmax over the sources of r, but ``calibration`` where r_i > above * mean(r_i). x = base + scale *
sum w_i (share of dm_i + share of dd_i) / 2 * tau_i. Vectors: the same once, with |tau_i| in place of r_i.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.kernels.curves import decay
from merge.kernels.reduce import column_sums, piece_sums
from merge.kernels.row_ranks import row_ranks
from merge.kernels.sums import scaled, total, weighted_sum

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


@method(
    title="WIDEN",
    kind=Kind.COMBINE,
    granularity="tensor",
    paper="arXiv:2408.03092",
    needs=Needs(base=True),
    workspace=Workspace(1.0, 0.5),
)
def widen(group: TensorGroup, p: Widen) -> Tensor:
    """Made to merge an instruction-tuned model with one that was pretrained further (a language, a domain),
    whose changes are of quite different size: what counts is how a column ranks within its own source,
    not how much it moved. Columns that matter to several sources are added up at full share, so equal
    sources do not give themselves back (unless normalized). One source alone is taken nearly whole: at
    calibration 1 exactly. Weights multiply the task vectors; whole tensors are held in memory. Costs no
    reading more.
    """
    deltas = group.deltas
    if len(group.site.shape) < 2:
        shares = _mean(deltas) if p.vectors == "mean" else _of_entries(deltas, p)
    else:
        shares = _of_columns(group, p)
    if p.normalize:
        whole = total(shares).clamp_(min=1)
        shares = [share / whole for share in shares]
    typed = [share.to(group.base.dtype) for share in shares]
    return weighted_sum(scaled(deltas, group.weights), typed).mul_(p.scale).add_(group.base)


def _mean(deltas: Sequence[Tensor]) -> list[Tensor]:
    return [torch.full((), 1 / len(deltas), dtype=torch.float64, device=d.device) for d in deltas]


def _of_entries(deltas: Sequence[Tensor], p: Widen) -> list[Tensor]:
    """Shares in a vector, by the sizes of its entries' changes."""
    sizes = [delta.abs().double() for delta in deltas]
    means = [float(piece_sums(size, size.numel())) / size.numel() for size in sizes]
    return _shares(sizes, [size > mean * p.above for size, mean in zip(sizes, means, strict=True)], p)


def _of_columns(group: TensorGroup, p: Widen) -> list[Tensor]:
    """Shares of the columns of a weight, of a shape that broadcasts over the tensor."""
    as_matrices, back = _views(group)
    base = as_matrices(group.base)
    gaps = _gaps(base, [as_matrices(delta) for delta in group.deltas])
    columns = base.shape[2]
    found = []
    for kind in (0, 1):
        ranks = [row_ranks(gap[kind], shared=p.equal == "mean").double() / columns for gap in gaps]
        mean = (columns - 1) / (2 * columns)
        found.append(_shares(ranks, [rank > p.above * mean for rank in ranks], p))
    return [back((lengths + turns) / 2) for lengths, turns in zip(*found, strict=True)]


def _shares(scores: Sequence[Tensor], important: Sequence[Tensor], p: Widen) -> list[Tensor]:
    """The softmax over the sources, but for what is important."""
    highest = functools.reduce(torch.maximum, scores)
    powers = [decay((highest - score).clamp_(max=FAR), FAR) for score in scores]
    whole = total(powers)
    return [
        (power / whole).masked_fill_(chosen, p.calibration)
        for power, chosen in zip(powers, important, strict=True)
    ]


def _gaps(base: Tensor, deltas: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """dm and dd of every column of (matrices, rows, columns), float64 (matrices, columns), of each source.

    Reckoned from products with the change, so that columns which did not move have gaps of exactly 0. A
    column of zeros has no direction: any column that is not zero is at right angles to it.
    """
    own, products = _products(base, deltas)
    found = []
    for cross, moved in products:
        ours, theirs = own.sqrt(), (own + 2 * cross + moved).clamp_(min=0).sqrt()
        both = ours + theirs
        gap = (2 * cross + moved) / torch.where(both > 0, both, 1)
        product = 2 * ours * theirs
        turn = (moved - gap * gap).clamp_(min=0) / torch.where(product > 0, product, 1)
        found.append((gap.abs(), torch.where(product > 0, turn, (both > 0).double())))
    return found


def _products(base: Tensor, deltas: Sequence[Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """<base, base> of the columns, and <base, tau> and <tau, tau> of each source, a few rows at a time."""
    matrices, rows, columns = base.shape
    height = max(1, TOGETHER // max(1, columns))
    sums = torch.zeros(1 + 2 * len(deltas), matrices, columns, dtype=torch.float64, device=base.device)
    for matrix in range(matrices):
        for first in range(0, rows, height):
            here = (matrix, slice(first, first + height))
            wide = base[here].double()
            sums[0, matrix] += column_sums(wide * wide, height)[0]
            for place, delta in enumerate(deltas):
                change = delta[here].double()
                sums[1 + 2 * place, matrix] += column_sums(wide * change, height)[0]
                sums[2 + 2 * place, matrix] += column_sums(change * change, height)[0]
    return sums[0], list(zip(sums[1::2], sums[2::2], strict=True))


def _views(group: TensorGroup) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """How to see the tensor as (matrices, rows, columns), and numbers of columns so that they broadcast over
    it. Stacked experts are so many matrices, kernels one of (out, rest).
    """
    shape = group.site.shape
    across = group.role == "embed" or group.site.turned
    if len(shape) == 3 and group.role == "expert":
        return (lambda tensor: tensor), (lambda found: found.unsqueeze(1))
    if len(shape) == 2 and across:
        return (lambda tensor: tensor.t().unsqueeze(0)), (lambda found: found.view(-1, 1))
    return (lambda tensor: tensor.reshape(1, shape[0], -1)), (lambda found: found.view(1, *shape[1:]))
