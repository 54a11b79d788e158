"""Passthrough: the one source as it is, times a factor."""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params


@params
class Passthrough:
    scale: tuple[float, ...] = knob(1.0, "Factor on every entry.", by_depth=True, by_source=True)


@method(
    title="Passthrough",
    kind=Kind.COMBINE,
    elementwise=True,
    linear=True,
    needs=Needs(sources=(1, 1)),
)
def passthrough(group: TensorGroup, p: Passthrough) -> Tensor:
    """Copies the only source, for instance to change its dtype, to apply an adapter for good, or to take
    single tensors from elsewhere by overrides. With a prepare step before it, gives back that one prepared
    model.
    """
    return group.sources[0] * p.scale[0]
