"""Magnitude trim: the first step of TIES alone.

kept_i = tau_i where |tau_i| is among the largest ``density``, else 0; by ``rescale`` none: kept; l1, l2:
kept times |tau| / |kept|, norms of the whole tensor.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn.functional import hardshrink

from merge.contract.groups import DeltaGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Sum, Threshold
from merge.kernels import rescale
from merge.kernels.signs import below


@params
class Trim:
    density: float = knob(
        0.2, "Share of each task vector kept, largest first.", gt=0, le=1, by_depth=True, by_source=True
    )
    scope: Literal["tensor", "global"] = knob(
        "tensor", "Rank magnitudes within each tensor, or over the whole model."
    )
    rescale: Literal["none", "l1", "l2"] = knob(
        "none", "Leave what is kept, or restore the tensor's L1 or L2 norm."
    )


def _kept(delta: Tensor, own: DeltaGroup) -> Tensor:
    return hardshrink(delta, below(own.stat(Threshold)[0]))


def _powers(delta: Tensor, own: DeltaGroup, p: Trim) -> Sequence[Tensor]:
    return rescale.powers(delta, _kept(delta, own), p.rescale)


MASS = Sum(_powers, after=(Threshold,), when=("rescale", ("l1", "l2")))


@method(
    title="Magnitude trim",
    kind=Kind.PREPARE,
    elementwise=True,
    paper="arXiv:2306.01708",
    needs=Needs(base=True, stats=(Threshold, MASS)),
)
def trim(delta: Tensor, own: DeltaGroup, p: Trim) -> Tensor:
    """Keeps the largest entries of every task vector and sets the others to zero. At least one is kept, and
    all that equal the smallest kept one. Before task arithmetic this is plain sparsification; before TIES at
    density 1 it is TIES.
    """
    kept = _kept(delta, own)
    if p.rescale == "none":
        return kept
    return kept.mul_(rescale.factor(own.stat(MASS), p.rescale))
