"""AIM: a merge holds on to the base where the base is most active.

With a_j the mean magnitude of input channel j of a module of the base, and s = a / max a in 0 to 1:
x = base + (merged - base) (1 - s (1 - omega)). Control ``uniform``: x = base + (merged - base) r, with the
one r per tensor that gives the change the same Frobenius norm.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.informed import Statistic
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Norm

ACTIVITY = Statistic("mean_abs_input", relative=True)
HEAD = Statistic("mean_abs_input", relative=True, head=True, when=("tied_head", ("relaxed",)))


@params
class Aim:
    omega: float = knob(
        0.4,
        "How much of its change the most active channel keeps; one that is never active keeps all of it.",
        ge=0,
        le=1,
        by_depth=True,
    )
    control: Literal["none", "uniform"] = knob(
        "none",
        "uniform: shrink every entry of a tensor alike, to the same norm, to tell AIM's choice of channels "
        "from its shrinking.",
    )
    unmeasured: Literal["merged", "base"] = knob(
        "merged", "What becomes of tensors without input channels: embeddings, biases."
    )
    tied_head: Literal["merged", "relaxed"] = knob(
        "merged",
        "An embedding that is the output head too: left as merged, or held back by the activity at the head.",
    )


def _changes(merged: Tensor, group: TensorGroup, p: Aim) -> Sequence[Tensor]:
    delta = merged - group.base
    held = _held(group, p)
    return (delta, delta if held is None else delta * (1 - held))


CHANGES = Norm(_changes, when=("control", ("uniform",)))


def _held(group: TensorGroup, p: Aim) -> Tensor | None:
    """The share of the change that is taken back at each entry, ``None`` where nothing was measured."""
    activity: Tensor | None = group.statistic(ACTIVITY)
    if p.tied_head == "relaxed" and activity is None:
        activity = group.statistic(HEAD)
    return None if activity is None else activity * (1 - p.omega)


@method(
    title="AIM",
    kind=Kind.ADJUST,
    elementwise=True,
    paper="arXiv:2502.02421",
    needs=Needs(base=True, stats=(CHANGES,), statistics=(ACTIVITY, HEAD)),
)
def aim(merged: Tensor, group: TensorGroup, p: Aim) -> Tensor:
    """Activation-informed merging: after any merge, the change to each weight is held back in proportion to
    how active the weight's input channel is in the base, measured on a calibration set. Norms' gains are
    held back by their own channel; tensors without input channels stay as merged.
    """
    held = _held(group, p)
    if held is None:
        return merged if p.unmeasured == "merged" else group.base.clone()
    if p.control == "uniform":
        before, after = group.stat(CHANGES)
        return merged if before == after else group.base + (merged - group.base) * (after / before)
    return torch.where(held > 0, group.base + (merged - group.base) * (1 - held), merged)
