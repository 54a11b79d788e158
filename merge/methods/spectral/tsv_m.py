"""TSV-Merge: the leading singular triplets of every task vector, made orthogonal to each other's.

k = floor(min(m, n) / N), or a share of min(m, n) that is chosen; t_i = U_i S_i V_i' cut to k triplets;
U = [U_1 .. U_N], V likewise; U and V replaced by their nearest matrices with orthonormal columns;
x = base + scale * U S V'.
"""

from collections.abc import Sequence
from math import floor

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.matrices import by_matrix, mean
from merge.contract.method import Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.kernels.thin import NULL, orthonormal, thin


@params
class TsvM:
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)
    rank_share: float = knob(
        0.0,
        "Share of a matrix's singular triplets kept of each of N sources; 0 stands for one N-th, 1 for all.",
        ge=0,
        le=1,
        by_depth=True,
    )
    null: float = knob(
        NULL, "Directions with a singular value below this share of the largest are left out.", gt=0, lt=1
    )


@method(
    title="TSV-Merge",
    kind=Kind.COMBINE,
    granularity="tensor",
    paper="arXiv:2412.00081",
    needs=Needs(base=True),
    workspace=Workspace(14.5),
    classes={"embed": "mean", "head": "mean"},
)
def tsv_m(group: TensorGroup, p: TsvM) -> Tensor:
    """Keeps the strongest singular directions of every task vector and turns them so that the sources' no
    longer overlap, which is where tasks interfere; the singular values stay. For several experts of one
    base, also many of them, where averaging blurs all. Weights multiply the task vectors. N copies of one
    source give its part of rank k, also where the published code fills directions that nobody has with
    arbitrary vectors. Vectors, kernels and matrices with fewer rows or columns than there are sources are
    averaged; embeddings and heads too, unless `classes` says otherwise. Costs one eigendecomposition of the
    shorter side for each source, and two of the kept directions.
    """
    return by_matrix(group, lambda deltas: _merged(deltas, p)).mul_(p.scale).add_(group.base)


def _merged(deltas: Sequence[Tensor], p: TsvM) -> Tensor:
    side = min(deltas[0].shape)
    kept = floor(side * p.rank_share) if p.rank_share else side // len(deltas)
    if kept == 0:
        return mean(deltas)
    parts = [thin(delta, kept, p.null) for delta in deltas]
    left = orthonormal(torch.cat([part.left for part in parts], dim=1), p.null)
    right = orthonormal(torch.cat([part.right for part in parts], dim=1), p.null)
    return (left * torch.cat([part.values for part in parts])) @ right.T
