"""Iso-CTS: as Iso-C, with the weakest common directions replaced by the strongest of each task.

k = min(m, n); M = sum t_i = U S V'. Of the k directions the leading k_c are common, U_c and V_c; the rest are
shared out evenly: s of each task, the leading triplets of (I - U_c U_c') t_i. All are put side by side, U and
V replaced by their nearest matrices with orthonormal columns; x = base + scale * mean(all S) * U V'.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.matrices import by_matrix
from merge.contract.method import Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.kernels.sums import wide_total
from merge.kernels.thin import NULL, orthonormal, thin


@params
class IsoCts:
    scale: float = knob(1.0, "Factor on the merged task vector, to be tuned.", by_depth=True)
    common: float = knob(
        0.8,
        "Share of the directions that the sum of all task vectors has; the tasks share the rest.",
        ge=0,
        le=1,
    )
    null: float = knob(
        NULL, "Directions with a singular value below this share of the largest are left out.", gt=0, lt=1
    )


@method(
    title="Iso-CTS",
    kind=Kind.COMBINE,
    granularity="tensor",
    version=2,
    paper="arXiv:2502.04959",
    needs=Needs(base=True),
    workspace=Workspace(17.5),
    classes={"embed": "mean", "head": "mean"},
)
def iso_cts(group: TensorGroup, p: IsoCts) -> Tensor:
    """Keeps the directions in which the task vectors agree most, gives each task some of its own in place of
    the weakest, and all the same strength. For many experts of one base that have less in common than
    `iso_c` likes; with one source it is `iso_c`. Weights multiply the task vectors. Directions that several
    tasks bring, or that are rounding, are left out once found to depend on others. Vectors and kernels are
    averaged; embeddings and heads too, unless `classes` says otherwise. Costs an eigendecomposition of the
    shorter side for the sum and for each source, and two of all directions.
    """
    return by_matrix(group, lambda deltas: _merged(deltas, p)).mul_(p.scale).add_(group.base)


def split(side: int, sources: int, common: float) -> tuple[int, int]:
    """How many of ``side`` directions are common, and how many each source has of its own."""
    own = side - int(common * side)
    each = round(own / sources)
    if each * sources > side:
        each = side // sources
    return side - each * sources, each


def _merged(deltas: Sequence[Tensor], p: IsoCts) -> Tensor:
    shared, each = split(min(deltas[0].shape), len(deltas), p.common)
    parts = [thin(wide_total(deltas), shared, p.null)]
    known = parts[0].left
    for delta in deltas if each else ():
        wide = delta.double()
        rest = wide - known @ (known.T @ wide)
        if float(rest.abs().max()) > p.null * float(wide.abs().max()):
            parts.append(thin(rest, each, p.null))
    left = orthonormal(torch.cat([part.left for part in parts], dim=1), p.null)
    right = orthonormal(torch.cat([part.right for part in parts], dim=1), p.null)
    values = torch.cat([part.values for part in parts])
    return left @ right.T * values.mean() if values.numel() else left @ right.T
