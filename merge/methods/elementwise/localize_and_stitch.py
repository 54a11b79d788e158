"""Localize-and-Stitch without data: each source's largest changes, averaged where they meet.

m_i = 1 at the largest ``sparsity`` of |tau_i| over the whole model; x = base + scale * sum w_i m_i tau_i /
sum |w_i| m_i, the base where every m_i is 0.
"""

from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Threshold

LEAST = Threshold(share="sparsity")


@params
class LocalizeAndStitch:
    sparsity: float = knob(
        0.05, "Share of each task vector that is its region, largest changes first.", gt=0, le=1
    )
    scope: Literal["tensor", "global"] = knob(
        "global", "Rank changes over the whole model, or within each tensor."
    )
    scale: float = knob(1.0, "Factor on the stitched task vector.", by_depth=True)


@method(
    title="Localize-and-Stitch (dataless)",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2408.13656",
    needs=Needs(base=True, stats=(LEAST,)),
)
def localize_and_stitch(group: TensorGroup, p: LocalizeAndStitch) -> Tensor:
    """Finds for each source the small region of the model where it changed most, and stitches the regions
    onto the base; where several meet, their changes are averaged by weight. This is the variant whose regions
    are found without data; the one that trains them is not offered.
    """
    stitched = torch.zeros_like(group.base)
    voters = torch.zeros_like(group.base)
    for delta, least, weight in zip(group.deltas, group.stat(LEAST), group.weights, strict=True):
        region = (delta.abs() >= least) & (delta != 0)
        mask = region.to(delta.dtype)
        stitched += mask * delta * weight
        voters += mask * abs(weight)
    voters += voters == 0
    return stitched.div_(voters).mul_(p.scale).add_(group.base)
