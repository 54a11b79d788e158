"""How methods on matrices see a tensor: which matrices it is made of, and what becomes of everything else."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.kernels.sums import total

Merge = Callable[[Sequence[Tensor]], Tensor]
"""From one (outputs, inputs) matrix of every source to the merged one, which may be float64."""


def weighted_deltas(group: TensorGroup) -> Sequence[Tensor]:
    """Every task vector times its source's weight."""
    pairs = zip(group.deltas, group.weights, strict=True)
    return [delta if weight == 1 else delta * weight for delta, weight in pairs]


def is_matrix(group: TensorGroup) -> bool:
    """Whether the tensor is one matrix, or a stack of experts' matrices."""
    site = group.site
    return (len(site.shape) == 2 or site.stacked) and not site.flat and min(site.shape) > 0


def by_matrix(
    group: TensorGroup, merge: Merge, otherwise: Merge | None = None, *, weighted: bool = True
) -> Tensor:
    """The merged task vector in the group's dtype: ``merge`` of each matrix, with rows for outputs.

    A stack of experts is merged matrix by matrix. Of vectors, kernels and the like it is what ``otherwise``
    makes of them: their mean, if nothing else is said. Both get the task vectors times the sources' weights,
    or as they are.
    """
    deltas = weighted_deltas(group) if weighted else group.deltas
    if not is_matrix(group):
        return (otherwise or mean)(deltas).to(group.base.dtype)
    upright = [delta.mT for delta in deltas] if group.site.turned else deltas
    if not group.site.stacked:
        merged = merge(upright)
        return (merged.mT if group.site.turned else merged).to(group.base.dtype)
    found = torch.empty_like(group.base)
    for place, matrix in enumerate(found.mT if group.site.turned else found):
        matrix.copy_(merge([delta[place] for delta in upright]))
    return found


def mean(deltas: Sequence[Tensor]) -> Tensor:
    """The arithmetic mean."""
    return total(deltas) / len(deltas)
