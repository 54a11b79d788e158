"""Arcee Fusion: take from the other model only the entries that matter.

With p, q the softmax of a row of the source and of the base: importance = |tau| * KL(p || q) of its row. Over
the tensor, threshold = median + reach * (Q3 - Q1); x = base + w tau where importance >= threshold, else base.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Lines, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.contract.ranked import Ranked
from merge.contract.rows import Rows
from merge.kernels.divergence import divergence, divergence_terms

LARGEST = torch.finfo(torch.float32).max


@params
class ArceeFusion:
    reach: float = knob(
        1.5,
        "How many interquartile ranges above the median an entry's importance must lie.",
        ge=0,
        by_depth=True,
    )


def _changed(group: TensorGroup, p: ArceeFusion) -> Sequence[Tensor]:  # noqa: ARG001
    return [group.base, group.deltas[0]]


MOST = Ranked(_changed, lambda *_: (1,))


def _divergence(group: TensorGroup, p: ArceeFusion) -> Sequence[Tensor]:  # noqa: ARG001
    """The terms of each row's, by the largest magnitudes of the tensor."""
    source, base = (tensor.view(-1, group.site.columns) for tensor in (group.sources[0], group.base))
    (most,), (apart,) = group.stat(MOST)
    return divergence_terms(source, base, most + apart, apart)


DIVERGENCE = Rows(_divergence, divergence, after=(MOST,))


def _importance(group: TensorGroup, p: ArceeFusion) -> Sequence[Tensor]:  # noqa: ARG001
    """float32, of the shape of the rows; largest finite number instead of infinity."""
    importance = group.deltas[0].abs().to(torch.float32).mul_(group.stat(DIVERGENCE))
    return (importance.clamp_(max=LARGEST),)


def _quartiles(p: ArceeFusion, entries: int) -> tuple[int, ...]:  # noqa: ARG001
    """Ranks from the top of Q1, median and Q3: the entries at the whole part of q (n - 1) from below."""
    return tuple(entries - quarter * (entries - 1) // 4 for quarter in (1, 2, 3))


QUARTILES = Ranked(_importance, _quartiles, after=(DIVERGENCE,))


@method(
    title="Arcee Fusion",
    kind=Kind.COMBINE,
    granularity="row",
    paper="arcee.ai, Arcee Fusion (no paper); mergekit's arcee_fusion",
    version=3,
    needs=Needs(base=True, sources=(1, 1), stats=(MOST, DIVERGENCE, QUARTILES)),
    workspace=Workspace(12.0),
    lines=Lines("rows", 8.0),
)
def arcee_fusion(group: TensorGroup, p: ArceeFusion) -> Tensor:
    """Takes over from one source the entries whose importance stands out in their tensor, and keeps the base
    elsewhere. Importance is the size of the change times how far its row's softmax moved; outliers are told
    by exact quartiles of the whole tensor, without sampling. Where more than three quarters of a tensor have
    no importance, every change is taken. The source's weight multiplies what is taken.
    """
    ((lower, median, upper),) = group.stat(QUARTILES)
    threshold = min(median + p.reach * (upper - lower), LARGEST)
    taken = group.deltas[0] * torch.ge(_importance(group, p)[0], threshold)
    return taken.mul_(group.weights[0]).add_(group.base)
