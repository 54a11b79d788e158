"""Clipping outliers (ours): no entry of a merge may stand out too far.

With the change d = m - base (m itself without a base): by ``limit`` share: |d| is held to the magnitude at
rank floor(share n) + 1, tensor by tensor or over the model; sources: to max_i |tau_i| at the same entry.
"""

import functools
from collections.abc import Sequence
from decimal import Decimal
from math import floor
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.ranked import Ranked


@params
class ClipOutliers:
    limit: Literal["share", "sources"] = knob(
        "share",
        "What an entry is held to: the largest of its tensor but for a share, or the largest change that any "
        "source made there.",
    )
    share: float = knob(0.001, "Share of the entries that is clipped, largest first.", ge=0, lt=1)
    scope: Literal["tensor", "global"] = knob(
        "tensor", "Rank magnitudes within each tensor, or over the whole model."
    )


def _change(merged: Tensor, group: TensorGroup, p: ClipOutliers) -> Sequence[Tensor]:  # noqa: ARG001
    return (merged if group.read_base is None else merged - group.base,)


def _rank(p: ClipOutliers, entries: int) -> tuple[int]:
    return (floor(Decimal(repr(p.share)) * entries) + 1,)


EDGE = Ranked(
    _change,
    _rank,
    idle=lambda p: p.share <= 0,
    share="share",
    when=("limit", ("share",)),
    scope="scope",
    by_place=True,
)


@method(
    title="Clip outliers",
    kind=Kind.ADJUST,
    elementwise=True,
    needs=Needs(base="optional", stats=(EDGE,)),
)
def clip_outliers(merged: Tensor, group: TensorGroup, p: ClipOutliers) -> Tensor:
    """Our own. Sums of task vectors pile up where several sources moved the same entry, and a few entries far
    from all others cost accuracy once the model is quantised. This holds the largest changes to the size of
    the largest ordinary one, or each entry to what some source did there, and leaves the rest as it is. In a
    tensor with fewer entries than 1 / share nothing is clipped.
    """
    if p.limit == "share" and p.share <= 0:
        return merged
    (change,) = _change(merged, group, p)
    if p.limit == "share":
        ((edge,),) = group.stat(EDGE)
        held = change.clamp(-edge, edge)
    else:
        edges = functools.reduce(torch.maximum, [point.abs() for point in group.points])
        held = torch.maximum(torch.minimum(change, edges), -edges)
    return held if group.read_base is None else torch.where(held == change, merged, held + group.base)
