"""RAM+: RAM that makes up for the dilution of what is shared by scaling up what is not.

changed_i = |tau_i| > epsilon; rho_i = (entries that i and others changed) / (entries that only i changed);
lambda_i = 1 + r min(rho_i, alpha); x = base + scale * (w_i lambda_i tau_i where only i changed; the mean of
the changed w_i tau_i where several did).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.ranked import Count
from merge.kernels.sums import total, weighted_sum


@params
class RamplusTl:
    r: float = knob(0.1, "How strongly the overlap scales up unique entries.", ge=0, by_depth=True)
    alpha: float = knob(0.2, "Largest overlap ratio that is counted.", ge=0, by_depth=True)
    epsilon: float = knob(1e-5, "An entry counts as changed when it moved by more than this.", ge=0)
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)
    scope: Literal["tensor", "global"] = knob(
        "tensor", "Count overlaps within each tensor (mergekit), or over the whole model (the paper)."
    )


def _changed(group: TensorGroup, p: RamplusTl) -> tuple[list[Tensor], Tensor]:
    """Task vectors without what did not change, and how many sources changed each entry."""
    changed = [hardshrink(delta, p.epsilon) for delta in group.deltas]
    return changed, total([delta.ne(0).to(delta.dtype) for delta in changed])


def _overlaps(group: TensorGroup, p: RamplusTl) -> Sequence[Tensor]:
    changed, count = _changed(group, p)
    shared, unique = count > 1, count == 1
    return [delta.ne(0).logical_and_(where) for delta in changed for where in (shared, unique)]


OVERLAPS = Count(_overlaps, scope="scope")


@method(
    title="RAM+ (tensor-local)",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2601.13572",
    needs=Needs(base=True, stats=(OVERLAPS,)),
)
def ramplus_tl(group: TensorGroup, p: RamplusTl) -> Tensor:
    """As RAM, but an entry that a single source changed is scaled up by 1 + r min(rho, alpha), where rho says
    how much of that source's changes are shared with others for each one that is not: the more a source is
    diluted by averaging, the louder its own entries. Weights multiply the task vectors.
    """
    changed, count = _changed(group, p)
    mean = weighted_sum(changed, group.weights).div_(count.clamp(min=1))
    alone = weighted_sum(changed, _loudness(group, p))
    return torch.where(count == 1, alone, mean).mul_(p.scale).add_(group.base)


def _loudness(group: TensorGroup, p: RamplusTl) -> list[float]:
    """Weight times lambda of every source."""
    counts = group.stat(OVERLAPS)
    pairs = zip(counts[::2], counts[1::2], strict=True)
    ratios = [shared / unique if unique else p.alpha for shared, unique in pairs]
    return [
        weight * (1 + p.r * min(ratio, p.alpha)) for weight, ratio in zip(group.weights, ratios, strict=True)
    ]
