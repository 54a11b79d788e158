"""Activation trim: keep the entries of a task vector that change most of what comes out.

score = |tau_ij| r_j, r_j the root mean square of the source's input channel j on its data; the largest
``density`` of each tensor are kept. The score is that of Wanda (arXiv:2306.11695), which prunes weights
within each row; applying it to task vectors, over whole tensors, is ours.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import DeltaGroup
from merge.contract.informed import Statistic
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Sum, Threshold
from merge.kernels import rescale

STRENGTH = Statistic("input_second_moment", of="sources", root=True)


@params
class ActivationTrim:
    density: float = knob(
        0.2, "Share of each task vector kept, best score first.", gt=0, le=1, by_depth=True, by_source=True
    )
    rescale: Literal["none", "l1", "l2"] = knob(
        "none", "Leave what is kept, or restore the tensor's L1 or L2 norm."
    )


def _scores(delta: Tensor, own: DeltaGroup, p: ActivationTrim) -> Sequence[Tensor]:  # noqa: ARG001
    strength: Tensor | None = own.statistic(STRENGTH)
    return (delta.abs() if strength is None else delta.abs() * strength,)


LEAST = Threshold(_scores, scope=None)


def _kept(delta: Tensor, own: DeltaGroup, p: ActivationTrim) -> Tensor:
    (least,), (score,) = own.stat(LEAST), _scores(delta, own, p)
    kept: Tensor = delta * (score.to(torch.float32) >= least)
    return kept


def _powers(delta: Tensor, own: DeltaGroup, p: ActivationTrim) -> Sequence[Tensor]:
    return rescale.powers(delta, _kept(delta, own, p), p.rescale)


MASS = Sum(_powers, after=(LEAST,), when=("rescale", ("l1", "l2")))


@method(
    title="Activation trim",
    kind=Kind.PREPARE,
    elementwise=True,
    needs=Needs(base=True, stats=(LEAST, MASS), statistics=(STRENGTH,)),
)
def activation_trim(delta: Tensor, own: DeltaGroup, p: ActivationTrim) -> Tensor:
    """Keeps the entries of every task vector whose size, times the strength of their input channel on the
    source's data, is largest, and sets the others to zero. Tensors without input channels are trimmed by
    size alone. Ours, after Wanda's score for pruning.
    """
    kept = _kept(delta, own, p)
    return kept if p.rescale == "none" else kept.mul_(rescale.factor(own.stat(MASS), p.rescale))
