"""KnOTS: task vectors in one shared basis of singular vectors, merged there entry by entry.

[t_1 | .. | t_N] = U diag(s) [V_1' | .. | V_N'], without null directions; X_i = diag(s) V_i' = U' t_i, which
TIES then trims, elects and merges to X; x = base + scale * U X. With ``basis: inputs`` the task vectors stand
below each other and share right singular vectors instead.
"""

from collections.abc import Sequence
from decimal import Decimal
from math import floor
from typing import Literal

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.matrices import by_matrix, mean
from merge.contract.method import Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.kernels.sums import total
from merge.kernels.thin import NULL, column_basis


@params
class Knots:
    scale: float = knob(1.0, "Factor on the merged task vector, to be tuned.", by_depth=True)
    density: float = knob(
        0.2,
        "Share of each task vector's entries in the shared basis that is kept, largest first.",
        gt=0,
        le=1,
        by_depth=True,
    )
    normalize: bool = knob(True, "Divide by the number of sources that agree, which makes the sum a mean.")
    basis: Literal["outputs", "inputs"] = knob(
        "outputs", "The side of the matrices whose directions are shared."
    )
    null: float = knob(
        NULL, "Directions with a singular value below this share of the largest are left out.", gt=0, lt=1
    )


@method(
    title="KnOTS-TIES",
    kind=Kind.COMBINE,
    scaled=True,
    granularity="tensor",
    version=2,
    paper="arXiv:2410.19735",
    needs=Needs(base=True),
    workspace=Workspace(4.0, 2.0, 2.0),
    stacked="columns",
    classes={"embed": "mean", "head": "mean"},
)
def knots(group: TensorGroup, p: Knots) -> Tensor:
    """Lines the task vectors up by a singular value decomposition of all of them together and lets TIES trim
    and vote there, where entries of different sources mean the same direction. Made for models tuned with
    LoRA, whose task vectors have little in common entry by entry. A mean taken in that basis would be the
    plain mean, so that there is no such choice. Weights multiply the task vectors. Each matrix is trimmed
    for itself (the published code: all together). Vectors and kernels are averaged; embeddings and heads
    too, unless `classes` says otherwise. Costs one eigendecomposition of one side.
    """
    return by_matrix(group, lambda deltas: _merged(deltas, p), mean).mul_(p.scale).add_(group.base)


def _merged(deltas: Sequence[Tensor], p: Knots) -> Tensor:
    if p.basis == "inputs":
        return _merged_upright([delta.T for delta in deltas], p).T
    return _merged_upright(deltas, p)


def _merged_upright(deltas: Sequence[Tensor], p: Knots) -> Tensor:
    basis = column_basis(deltas, p.null).to(deltas[0])
    trimmed = [_trimmed(basis.T @ delta, p.density) for delta in deltas]
    elected = total(trimmed).sign_()
    agreeing = [part.mul_(elected).clamp_(min=0) for part in trimmed]
    merged = total(agreeing)
    if p.normalize:
        merged /= total([(part > 0).to(merged) for part in agreeing]).clamp_(min=1)
    return basis @ merged.mul_(elected)


def _trimmed(values: Tensor, density: float) -> Tensor:
    """The largest entries, all that equal the least of them; at least one."""
    count = max(1, floor(Decimal(repr(density)) * values.numel()))
    if count >= values.numel():
        return values
    sizes = values.abs()
    return values * (sizes >= sizes.reshape(-1).kthvalue(values.numel() - count + 1).values)
