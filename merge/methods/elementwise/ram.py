"""RAM: average what several sources changed, keep whole what only one changed.

changed_i = |tau_i| > epsilon; x = base + scale * (sum of the changed w_i tau_i) / max(1, number of changed).
"""

from torch import Tensor
from torch.nn.functional import hardshrink

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.sums import total, weighted_sum


@params
class Ram:
    epsilon: float = knob(1e-5, "An entry counts as changed when it moved by more than this.", ge=0)
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)


@method(
    title="RAM (reinforced agent merging)",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2601.13572",
    needs=Needs(base=True),
)
def ram(group: TensorGroup, p: Ram) -> Tensor:
    """For sparse task vectors, as reinforcement learning leaves them: an entry that several sources changed
    is averaged over these, one that a single source changed is taken as it is instead of being divided by
    the number of sources. Changes of epsilon or less are dropped. Weights multiply the task vectors.
    """
    changed = [hardshrink(delta, p.epsilon) for delta in group.deltas]
    count = total([delta.ne(0).to(delta.dtype) for delta in changed]).clamp_(min=1)
    return weighted_sum(changed, group.weights).div_(count).mul_(p.scale).add_(group.base)
