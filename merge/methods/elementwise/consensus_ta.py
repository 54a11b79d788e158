"""Consensus task arithmetic: the summed task vector, where enough sources have a part in it (TALL masks).

With T = sum w_i tau_i, source i holds an entry where |w_i tau_i| > threshold |T - w_i tau_i|; x = base +
scale * T where at least ``agree`` sources hold it (all of them, if there are fewer), else base.
"""

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.limits import Caution
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.sums import scaled, total


@params
class ConsensusTa:
    threshold: tuple[float, ...] = knob(
        0.2,
        "A source holds an entry where its change is more than this times what all others together add to it "
        "(the paper's lambda).",
        ge=0,
        by_depth=True,
        by_source=True,
    )
    agree: int = knob(
        2,
        "How many sources must hold an entry: 0 keeps all, 1 drops what nobody holds (the paper's k).",
        ge=0,
    )
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)


UNANIMOUS = Caution(
    "entries that all sources changed alike are held by none and fall back to the base, though they are the "
    "surest; take a threshold below 1 / (sources - 1)",
    "threshold",
    1.0,
    shared_out=True,
    unless={"agree": 0},
)


@method(
    title="Consensus task arithmetic (TALL masks)",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2405.07813",
    needs=Needs(base=True, cautions=(UNANIMOUS,)),
)
def consensus_ta(group: TensorGroup, p: ConsensusTa) -> Tensor:
    """Task arithmetic without the entries that only one source (or none) cares about: they help one task and
    cost the others. For several experts of one base; scale it down as task arithmetic. Weights multiply the
    task vectors first. With N equal task vectors each is 1 / (N - 1) of the others' sum, so a threshold from
    there on loses what is unanimous; the published grid (0.2 to 0.6) does so from six experts on at the
    latest. One source alone is taken whole.
    """
    moves = scaled(group.deltas, group.weights)
    merged = total(moves)
    if p.agree:
        holders = torch.zeros_like(merged)
        for move, threshold in zip(moves, p.threshold, strict=True):
            holders += torch.gt(move.abs(), (merged - move).abs_().mul_(threshold)).to(merged.dtype)
        merged *= torch.ge(holders, min(p.agree, len(moves))).to(merged.dtype)
    return merged.mul_(p.scale).add_(group.base)
