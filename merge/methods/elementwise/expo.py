"""ExPO: on beyond a tuned model, in the direction in which tuning moved it.

x = base + (1 + alpha) w tau, reckoned as source + ((1 + alpha) w - 1) tau.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params


@params
class Expo:
    alpha: float = knob(
        0.5,
        "How much further, in lengths of the change itself: 0 gives the source, 1 doubles its change, -1 "
        "gives the base.",
        ge=-1,
        by_depth=True,
    )


@method(
    title="ExPO (model extrapolation)",
    kind=Kind.COMBINE,
    elementwise=True,
    linear=True,
    paper="arXiv:2404.16792",
    needs=Needs(base=True, sources=(1, 1)),
)
def expo(group: TensorGroup, p: Expo) -> Tensor:
    """Extrapolates from the model before alignment (the base: supervised tuning) through the aligned one (the
    source: DPO, RLHF) to a model that was, as it were, aligned for longer. Helps where training stopped
    early; too far and the model falls apart, so score a few values of alpha, 0.1 to 0.5 first. With a
    pair of models that is not one training step apart (a raw base and a chat model) little is to be had.
    The source's weight multiplies its change. Costs nothing beside the reading.
    """
    further = (1 + p.alpha) * group.weights[0] - 1
    return (group.deltas[0] * further).add_(group.sources[0])
