"""Iso-C: the sum of the task vectors with one singular value for all directions.

M = sum t_i = U S V'; x = base + scale * mean(S) * U V'.
"""

from collections.abc import Sequence

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.matrices import by_matrix
from merge.contract.method import Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.kernels.sums import wide_total
from merge.kernels.thin import NULL, evened


@params
class IsoC:
    scale: float = knob(1.0, "Factor on the merged task vector, to be tuned.", by_depth=True)
    null: float = knob(
        NULL, "Directions with a singular value below this share of the largest are left out.", gt=0, lt=1
    )


@method(
    title="Iso-C",
    kind=Kind.COMBINE,
    scaled=True,
    granularity="tensor",
    version=3,
    paper="arXiv:2502.04959",
    needs=Needs(base=True),
    workspace=Workspace(3.0, 0.0, 10.0),
    classes={"embed": "mean", "head": "mean"},
)
def iso_c(group: TensorGroup, p: IsoC) -> Tensor:
    """Adds up the task vectors and gives every singular direction of the sum the mean of the singular
    values, so that weak directions, which often belong to one task, count as much as those all tasks share;
    the nuclear norm stays. For many experts of one base. Weights multiply the task vectors. Where the sum
    has no full rank (adapters that were merged in), only its own directions are raised, not arbitrary ones
    besides; `null` may be raised to leave rounding out. Vectors and kernels are averaged; embeddings and
    heads too, unless `classes` says otherwise. Costs one eigendecomposition of the shorter side.
    """
    return by_matrix(group, lambda deltas: _merged(deltas, p)).mul_(p.scale).add_(group.base)


def _merged(deltas: Sequence[Tensor], p: IsoC) -> Tensor:
    return evened(wide_total(deltas), p.null, deltas[0].dtype)
