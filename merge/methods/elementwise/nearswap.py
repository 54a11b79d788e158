"""NearSwap: x = base + clamp(x_1 - base, -t, t).

The same as moving from the base to the source by the share min(t / |x_1 - base|, 1) of every entry's way.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params


@params
class Nearswap:
    t: float = knob(1e-4, "The furthest an entry may move away from the base.", ge=0, by_depth=True)


@method(
    title="NearSwap",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="alchemonaut 2024, QuartetAnemoi-70B",
    needs=Needs(base=True, sources=(1, 1)),
)
def nearswap(group: TensorGroup, p: Nearswap) -> Tensor:
    """Takes over what the source has nearly like the base, and moves everything else by t towards it: the
    base stays in charge where the two disagree. The source's weight plays no part.
    """
    return group.deltas[0].clamp(-p.t, p.t).add_(group.base)
