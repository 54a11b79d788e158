"""Model Breadcrumbs: drop the outliers and the crumbs of a task vector, keep what lies between.

Of n magnitudes in falling order the first floor(gamma n) are dropped, the next max(1, floor(density n)) are
kept, the rest is dropped. By ``rescale`` none: kept; l1, l2: kept times |tau| / |kept|, norms of the whole
tensor.
"""

from collections.abc import Sequence
from decimal import Decimal
from math import floor
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import DeltaGroup
from merge.contract.limits import Limit
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.ranked import Ranked
from merge.contract.stats import Sum, own_delta
from merge.kernels import rescale


@params
class Breadcrumbs:
    density: float = knob(0.9, "Share of each task vector kept.", gt=0, le=1, by_depth=True, by_source=True)
    gamma: float = knob(
        0.01, "Share of the largest entries that is dropped.", ge=0, lt=1, by_depth=True, by_source=True
    )
    overlap: Literal["refuse", "shrink_gamma"] = knob(
        "refuse",
        "Where density and gamma add up to more than 1: stop, or drop fewer of the largest (as mergekit).",
    )
    rescale: Literal["none", "l1", "l2"] = knob(
        "none", "Leave what is kept, or restore the tensor's L1 or L2 norm."
    )


def _ranks(p: Breadcrumbs, entries: int) -> tuple[int, int]:
    """Of the largest and of the smallest magnitude that is kept."""
    top, kept = (floor(Decimal(repr(share)) * entries) for share in (p.gamma, p.density))
    kept = max(1, kept)
    top = min(top, entries - kept)
    return top + 1, top + kept


EDGES = Ranked(own_delta, _ranks, idle=lambda p: p.density >= 1)


def _kept(delta: Tensor, own: DeltaGroup, p: Breadcrumbs) -> Tensor:
    if p.density >= 1:
        return delta.clone()
    ((largest, smallest),) = own.stat(EDGES)
    sizes = delta.abs().to(torch.float32)
    return torch.ge(sizes, smallest).logical_and_(torch.le(sizes, largest)) * delta


def _powers(delta: Tensor, own: DeltaGroup, p: Breadcrumbs) -> Sequence[Tensor]:
    return rescale.powers(delta, _kept(delta, own, p), p.rescale)


MASS = Sum(_powers, after=(EDGES,), when=("rescale", ("l1", "l2")))


@method(
    title="Model Breadcrumbs",
    kind=Kind.PREPARE,
    elementwise=True,
    paper="arXiv:2312.06795",
    needs=Needs(
        base=True,
        stats=(EDGES, MASS),
        limits=(Limit({"density": 1, "gamma": 1}, 1, {"overlap": "shrink_gamma", "density": 1}),),
    ),
)
def breadcrumbs(delta: Tensor, own: DeltaGroup, p: Breadcrumbs) -> Tensor:
    """Drops the share gamma of the largest entries of every task vector as outliers, and the smallest as
    noise, so that the share density remains. Magnitudes are ranked within each tensor. At least one entry is
    kept, and all that equal the largest or the smallest kept one. At density 1 nothing is dropped.
    """
    kept = _kept(delta, own, p)
    if p.rescale == "none":
        return kept
    return kept.mul_(rescale.factor(own.stat(MASS), p.rescale))
