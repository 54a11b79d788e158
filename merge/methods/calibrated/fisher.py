"""Fisher-weighted average: at each entry the sources whose predictions depend on it most have the most say.

x = sum c_i f_i theta_i / sum c_i f_i, c_i the weights, f_i = max(F_i / rms(F_i), floor) with F_i the diagonal
of source i's Fisher information on its own data. Dividing by the root mean square instead of the published
Euclidean norm weighs the sources alike, and gives the floor one meaning for models of any size.
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
from merge.kernels.sums import anchored_mean

FISHER = {
    "sampled": Statistic("fisher", of="sources", when=("estimator", ("sampled",))),
    "argmax": Statistic("fisher_argmax", of="sources", when=("estimator", ("argmax",))),
    "exact": Statistic("fisher_exact", of="sources", when=("estimator", ("exact",))),
}

LEAST = 2.0**-127


@params
class Fisher:
    estimator: Literal["sampled", "argmax", "exact"] = knob(
        "sampled",
        "Labels drawn from the model, its likeliest ones alone, or all of them by their probability "
        "(classifiers: a pass backwards for each label).",
    )
    normalize: Literal["global", "tensor", "none"] = knob(
        "global",
        "Divide each source's Fisher by its root mean square over the whole model, over each tensor, or not.",
    )
    floor: float = knob(
        1e-6,
        "Least Fisher of an entry: where nothing was learned of it, all sources count by their weights.",
        ge=0,
    )
    favor_target: bool = knob(
        False, "Only the first source has the floor, so that it alone decides where no Fisher is above it."
    )


def _measured(group: TensorGroup, p: Fisher) -> Sequence[Tensor] | None:
    """Every source's Fisher; ``None`` where one of them has none."""
    found: tuple[Tensor | None, ...] = group.statistic(FISHER[p.estimator])
    known = [each for each in found if each is not None]
    return known if len(known) == len(found) else None


def _spread(group: TensorGroup, p: Fisher) -> Sequence[Tensor]:
    """Every source's Fisher, and ones where there is any: its norm is the root of how many there are."""
    found, like = _measured(group, p), group.sources[0]
    if found is None:
        return [torch.zeros_like(like)] * (len(group.sources) + 1)
    return [*found, torch.ones_like(like)]


NORMS = Norm(_spread, scope="normalize", when=("normalize", ("global", "tensor")))


@method(
    title="Fisher-weighted averaging",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2111.09832",
    needs=Needs(stats=(NORMS,), weight_sum=True, statistics=tuple(FISHER.values())),
    breaks={"order": "with favor_target the first source is the one that keeps its say"},
)
def fisher(group: TensorGroup, p: Fisher) -> Tensor:
    """Averages the sources entry by entry, each weighted by the diagonal of its Fisher information: how much
    its own predictions on its own data depend on that weight. A source's weight multiplies its Fisher. Where
    no Fisher is above the floor, and in tensors that have none, it is the plain weighted average.
    """
    found = _measured(group, p)
    if found is None:
        return anchored_mean(group.sources, group.weights)
    known = [_scaled(values, place, group, p) for place, values in enumerate(found)]
    says = [values * weight for values, weight in zip(known, group.weights, strict=True)]
    return anchored_mean(group.sources, says, otherwise=group.weights)


def _scaled(values: Tensor, place: int, group: TensorGroup, p: Fisher) -> Tensor:
    if p.normalize != "none":
        norms = group.stat(NORMS)
        if norms[place] > 0:
            values = _times(values, norms[-1], norms[place])
    return values if p.favor_target and place else values.clamp(min=p.floor)


def _times(values: Tensor, factor: float, divisor: float) -> Tensor:
    """Times one number and over another, one after the other where their quotient is no float32."""
    return values * (factor / divisor) if divisor > factor * LEAST else values / divisor * factor
