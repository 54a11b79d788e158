"""TIES: trim each task vector, elect one sign per entry, merge what agrees.

trimmed_i = tau_i where |tau_i| is among the largest ``density``, else 0; elected = sign(sum w_i trimmed_i);
x = base + scale * (sum of those w_i trimmed_i whose sign is the elected one) / (sum of their |w_i|).
"""

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Threshold
from merge.kernels.signs import below
from merge.kernels.sums import scaled, total


@params
class Ties:
    density: tuple[float, ...] = knob(
        0.2, "Share of each task vector kept, largest first.", gt=0, le=1, by_depth=True, by_source=True
    )
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)
    scope: Literal["tensor", "global"] = knob(
        "tensor", "Rank magnitudes within each tensor, or over the whole model."
    )
    elect: Literal["weighted_sum", "sum"] = knob(
        "weighted_sum",
        "What votes on the sign of an entry: task vectors times their weights, or as they are.",
    )
    on_tie: Literal["zero", "plus"] = knob(
        "zero", "Sign elected where the vote is exactly even: none, or plus."
    )
    aggregate: Literal["sum", "max"] = knob("sum", "Add the agreeing entries, or take the largest of them.")
    normalize: bool = knob(
        True, "Divide a sum by the weights of the sources that agree, which makes it a mean."
    )


@method(
    title="TIES-Merging",
    kind=Kind.COMBINE,
    scaled=True,
    elementwise=True,
    paper="arXiv:2306.01708",
    needs=Needs(base=True, stats=(Threshold,)),
)
def ties(group: TensorGroup, p: Ties) -> Tensor:
    """Keeps the largest entries of every task vector (all that equal the threshold); where the survivors pull
    in different directions, the direction with more total mass wins, and only the survivors on its side
    are merged. Source weights multiply the task vectors after the trim; with equal weights every source
    has the same say.
    """
    trimmed = [hardshrink(d, below(t)) for d, t in zip(group.deltas, group.stat(Threshold), strict=True)]
    weighted = scaled(trimmed, group.weights)
    elected = total(weighted if p.elect == "weighted_sum" else trimmed).sign_()
    if p.on_tie == "plus":
        elected += elected == 0
    agreeing = [vector.mul_(elected).clamp_(min=0) for vector in weighted]
    if p.aggregate == "max":
        merged = functools.reduce(torch.maximum, agreeing)
    else:
        merged = total(agreeing)
        if p.normalize:
            merged /= _voters(agreeing, group.weights)
    return merged.mul_(elected).mul_(p.scale).add_(group.base)


def _voters(agreeing: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """Sum of the weights' sizes over those that agree, 1 where nobody does."""
    flag = torch.empty_like(agreeing[0])
    voters = torch.zeros_like(flag)
    for vector, weight in zip(agreeing, weights, strict=True):
        voters += torch.gt(vector, 0, out=flag).mul_(abs(weight))
    return voters.add_(torch.eq(voters, 0, out=flag))
