"""Localize-and-Stitch: a small region of each source, averaged where they meet.

m_i = 1 at the largest ``sparsity`` of |tau_i| over the whole model, or in a region that is trained
(``merge.joint.masks``); x = base + scale * sum w_i m_i tau_i /
sum |w_i| m_i, the base where every m_i is 0.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.informed import Statistic
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Threshold

LEAST = Threshold(share="sparsity", when=("region", ("largest",)))
TRAINED = Statistic(
    "mask",
    of="sources",
    when=("region", ("trained",)),
    knobs=("sparsity", "epochs", "rate", "sparsify", "bias"),
)


@params
class LocalizeAndStitch:
    sparsity: float = knob(
        0.05,
        "Share of each task vector that is its region, largest changes first; where training begins.",
        gt=0,
        le=1,
    )
    region: Literal["largest", "trained"] = knob(
        "largest", "Take the largest changes, or train the region on the source's own data."
    )
    scope: Literal["tensor", "global"] = knob(
        "global", "Rank changes over the whole model, or within each tensor."
    )
    scale: float = knob(1.0, "Factor on the stitched task vector.", by_depth=True)
    epochs: int = knob(10, "trained: times that all of the data is gone through.", ge=1, le=1000)
    rate: float = knob(1e7, "trained: step along the gradient of the loss.", ge=0)
    sparsify: float = knob(10.0, "trained: step towards smaller regions.", ge=0)
    bias: float = knob(
        5.0,
        "trained: score with which an entry of the first region begins; the others with minus that.",
        gt=0,
        le=30,
    )


@method(
    title="Localize-and-Stitch",
    kind=Kind.COMBINE,
    elementwise=True,
    version=2,
    paper="arXiv:2408.13656",
    needs=Needs(base=True, stats=(LEAST,), statistics=(TRAINED,)),
)
def localize_and_stitch(group: TensorGroup, p: LocalizeAndStitch) -> Tensor:
    """Finds for each source the small region of the model where it changed most, or trains the region on the
    source's own data, and stitches the regions onto the base; where several meet, their changes are averaged
    by weight. Tensors that the training never reached have no trained region.
    """
    stitched = torch.zeros_like(group.base)
    voters = torch.zeros_like(group.base)
    for delta, mask, weight in zip(group.deltas, _regions(group, p), group.weights, strict=True):
        stitched += mask * delta * weight
        voters += mask * abs(weight)
    voters += voters == 0
    return stitched.div_(voters).mul_(p.scale).add_(group.base)


def _regions(group: TensorGroup, p: LocalizeAndStitch) -> Iterator[Tensor]:
    """1 in each source's region, else 0."""
    if p.region == "trained":
        for delta, mask in zip(group.deltas, group.statistic(TRAINED), strict=True):
            yield torch.zeros_like(delta) if mask is None else mask
    else:
        for delta, least in zip(group.deltas, group.stat(LEAST), strict=True):
            yield ((delta.abs().to(torch.float32) >= least) & (delta != 0)).to(delta.dtype)
