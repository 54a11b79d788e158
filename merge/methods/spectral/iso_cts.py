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
from merge.kernels.thin import NULL, Thin, beside_orthonormal, divided, orthonormal, thin


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
    scaled=True,
    granularity="tensor",
    version=3,
    paper="arXiv:2502.04959",
    needs=Needs(base=True),
    workspace=Workspace(3.0, 0.0, 14.5),
    classes={"embed": "mean", "head": "mean"},
)
def iso_cts(group: TensorGroup, p: IsoCts) -> Tensor:
    """Keeps the directions in which the task vectors agree most, gives each task some of its own in place of
    the weakest, and all the same strength. For many experts of one base that have less in common than
    `iso_c` likes; with one source it is `iso_c`. Weights multiply the task vectors. Directions that several
    tasks bring, or that are rounding, are left out once found to depend on others. Vectors and kernels are
    averaged; embeddings and heads too, unless `classes` says otherwise. Costs an eigendecomposition of the
    shorter side for the sum, one of all directions (two where rows are more than columns, and one for each
    source), and small ones.
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
    wide = deltas[0].shape[0] <= deltas[0].shape[1]
    left, right, values = (_of_wide if wide else _of_tall)(deltas, shared, each, p.null)
    merged = beside_orthonormal(left, right, p.null, deltas[0].dtype)
    return merged.mul_(values.mean()) if values.numel() else merged


def _of_wide(deltas: Sequence[Tensor], shared: int, each: int, null: float) -> tuple[Tensor, Tensor, Tensor]:
    """U with orthonormal columns, V as it is stacked, and all values. What is orthogonal to U_c has a basis
    of so few columns that all of a source that is not common is looked at, and made orthogonal, there.
    """
    common, beyond = divided(wide_total(deltas), shared, null, deltas[0].dtype)
    parts = []
    for delta in deltas if each else ():
        rest = beyond.to(delta).T @ delta
        if _is_left(rest, delta, null):
            parts.append(thin(rest, each, null))
    if not parts:
        return common.left, common.right, common.values
    own = beyond @ orthonormal(torch.cat([part.left for part in parts], dim=1), null)
    return torch.cat([common.left, own], dim=1), *_stacked([common, *parts])


def _of_tall(deltas: Sequence[Tensor], shared: int, each: int, null: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same where U_c leaves more than it takes."""
    parts = [thin(wide_total(deltas), shared, null)]
    known = parts[0].left
    for delta in deltas if each else ():
        rest = delta.double()
        rest = rest - known @ (known.T @ rest)
        if _is_left(rest, delta, null):
            parts.append(thin(rest, each, null))
    left = orthonormal(torch.cat([part.left for part in parts], dim=1), null)
    return left, *_stacked(parts)


def _is_left(rest: Tensor, delta: Tensor, null: float) -> bool:
    """Whether more than rounding is left of a task vector."""
    norms = [float(torch.linalg.vector_norm(each, dtype=torch.float64)) for each in (rest, delta)]
    return norms[0] > null * norms[1]


def _stacked(parts: Sequence[Thin]) -> tuple[Tensor, Tensor]:
    """All right sides side by side, and all values."""
    return torch.cat([part.right for part in parts], dim=1), torch.cat([part.values for part in parts])
