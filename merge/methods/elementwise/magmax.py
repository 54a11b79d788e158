"""MagMax: entry by entry, the source that moved furthest from the base wins.

x = base + scale * w_k tau_k with k = argmax_i |w_i tau_i|; the base where the two furthest moves are opposite
and of one size.
"""

import functools

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.sums import scaled


@params
class MagMax:
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)


@method(
    title="MagMax",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2407.06322",
    needs=Needs(base=True),
)
def magmax(group: TensorGroup, p: MagMax) -> Tensor:
    """Takes at every entry the largest change that any source made there, whole. Made for models that were
    tuned one after another on related tasks; sources that disagree are not reconciled, and the result
    moves further than any of them, so try a scale below 1 with many. Weights multiply the task vectors
    before they are compared. Equal moves in opposite directions leave the base. Costs nothing beside the
    reading.
    """
    moves = scaled(group.deltas, group.weights)
    highest, lowest = functools.reduce(torch.maximum, moves), functools.reduce(torch.minimum, moves)
    up, down = highest > -lowest, highest < -lowest
    none = torch.zeros_like(highest)
    return torch.where(up, highest, torch.where(down, lowest, none)).mul_(p.scale).add_(group.base)
