"""EMR's unified task vector: elect a sign for every entry, and take the largest change in that direction.

elected = sign(sum w_i tau_i); unified = elected * max_i |w_i tau_i| over those i whose sign is the elected
one; x = base + scale * unified.
"""

import functools
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.sums import scaled, total


@params
class Emr:
    scale: float = knob(1.0, "Factor on the unified task vector.", by_depth=True)
    on_tie: Literal["zero", "minus"] = knob(
        "zero", "Sign elected where the vote is exactly even: none, or minus (the published code)."
    )


@method(
    title="EMR-Merging (unified task vector)",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2405.17461",
    needs=Needs(base=True),
)
def emr(group: TensorGroup, p: Emr) -> Tensor:
    """Elects one sign per entry by the sum of the task vectors and takes the largest change with that sign.
    This is what EMR's experts share, and as one model it is TIES without trim and with the largest in
    place of the mean: it moves at least as far as any source in the elected direction, so a scale below
    1 often does better. What sets EMR apart, a mask and a factor for each expert that give every one of
    them back, does not fit in one model. Weights multiply the task vectors. Costs nothing beside the
    reading.
    """
    moves = scaled(group.deltas, group.weights)
    elected = total(moves).sign_()
    if p.on_tie == "minus":
        elected -= (elected == 0).to(elected.dtype)
    agreeing = [torch.mul(move, elected).clamp_(min=0) for move in moves]
    return functools.reduce(torch.maximum, agreeing).mul_(elected).mul_(p.scale).add_(group.base)
