"""SCE: select where the sources differ most, calculate each one's share, erase the minority's entries.

Of the entries whose variance over the task vectors is not 0, S keeps the largest ``density``. c_i = mean
over the tensor of (S tau_i)^2; elected = sign(sum S tau_i); x = base + scale * (sum w_i c_i S tau_i) / (sum
|w_i| c_i) over those i whose entry has the elected sign.
"""

from collections.abc import Sequence
from decimal import Decimal
from itertools import combinations
from math import floor
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.ranked import Ranked
from merge.contract.stats import Sum
from merge.kernels.sums import total


@params
class Sce:
    density: float = knob(
        1.0,
        "Share of the entries selected, those that vary most over the sources (select_topk).",
        gt=0,
        le=1,
        by_depth=True,
    )
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)
    on_tie: Literal["zero", "plus"] = knob(
        "zero", "Sign elected where the vote is exactly even: none, or plus (mergekit)."
    )
    equal_below: float = knob(
        0.0,
        "All sources count the same where the mean squares add up to less than this (mergekit: 1e-6).",
        ge=0,
    )


def _spread(group: TensorGroup, p: Sce) -> Sequence[Tensor]:  # noqa: ARG001
    """What ranks like the variance: the squared differences of all pairs, in any order the same; float32."""
    spread = torch.zeros_like(group.deltas[0])
    for one, other in combinations(group.deltas, 2):
        spread += torch.sub(one, other).square_()
    return (spread.to(torch.float32),)


def _rank(p: Sce, entries: int) -> tuple[int]:
    return (floor(Decimal(repr(p.density)) * entries),)


SPREAD = Ranked(_spread, _rank, nonzero=True, idle=lambda p: p.density >= 1)


def _selected(group: TensorGroup, p: Sce) -> Sequence[Tensor]:
    if p.density >= 1:
        return group.deltas
    ((least,),) = group.stat(SPREAD)
    chosen = _spread(group, p)[0] >= least
    return [delta * chosen for delta in group.deltas]


def _squares(group: TensorGroup, p: Sce) -> Sequence[Tensor]:
    return [delta.double().square() for delta in _selected(group, p)]


SQUARES = Sum(_squares, after=(SPREAD,))


@method(
    title="SCE",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2408.07990",
    needs=Needs(base=True, stats=(SPREAD, SQUARES)),
)
def sce(group: TensorGroup, p: Sce) -> Tensor:
    """Selects the entries of a tensor where the task vectors differ most (all that equal the least selected
    one; all of them where none differ, so that one source alone is taken whole), gives each source the share
    of its mean square among what was selected, drops entries against the elected sign, and averages the
    rest. A source's weight multiplies its share, and has no vote on the sign.
    """
    selected = _selected(group, p)
    elected = total(selected).sign_()
    if p.on_tie == "plus":
        elected += elected == 0
    shares = _shares(group, p)
    merged = torch.zeros_like(elected)
    voters = torch.zeros_like(elected)
    for delta, share, weight in zip(selected, shares, group.weights, strict=True):
        agreeing = torch.mul(delta, elected).clamp_(min=0)
        voters += torch.gt(agreeing, 0).to(elected.dtype).mul_(share * abs(weight))
        merged += agreeing.mul_(share * weight)
    voters += voters == 0
    return merged.div_(voters).mul_(elected).mul_(p.scale).add_(group.base)


def _shares(group: TensorGroup, p: Sce) -> list[float]:
    """Each source's part of the sum of squares, equal ones where there is nothing to tell them apart."""
    squares = group.stat(SQUARES)
    whole = sum(squares)
    entries = 1
    for length in group.site.shape:
        entries *= length
    if whole <= 0 or whole / entries < p.equal_below:
        return [1.0 / len(squares)] * len(squares)
    return [square / whole for square in squares]
