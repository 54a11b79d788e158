"""Task arithmetic: base + scale * sum of w_i (x_i - base)."""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.sums import weighted_sum


@params
class TaskArithmetic:
    scale: float = knob(
        1.0, "Factor on the summed task vectors; 1 over the number of sources averages.", by_depth=True
    )
    normalize: bool = knob(False, "Divide the sum by the sum of the weights.")


@method(
    title="Task arithmetic",
    kind=Kind.COMBINE,
    elementwise=True,
    linear=True,
    paper="arXiv:2212.04089",
    needs=Needs(base=True, weight_sum="normalize"),
)
def task_arithmetic(group: TensorGroup, p: TaskArithmetic) -> Tensor:
    """Adds the task vectors (source minus base) to the base, each times its source's weight, all times scale.
    A negative weight takes a skill away. Without normalising, more sources move the result further.
    """
    factor = p.scale / sum(group.weights) if p.normalize else p.scale
    return weighted_sum(group.deltas, [factor * weight for weight in group.weights]).add_(group.base)
