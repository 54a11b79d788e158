"""Weighted average of the sources: sum of w_i x_i, divided by the sum of w_i if normalising (model soups)."""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.sums import weighted_sum


@params
class Linear:
    normalize: bool = knob(True, "Divide by the sum of the weights, so that only their ratios matter.")


@method(
    title="Linear average",
    kind=Kind.COMBINE,
    elementwise=True,
    linear=True,
    paper="arXiv:2203.05482",
    needs=Needs(weight_sum="normalize"),
)
def linear(group: TensorGroup, p: Linear) -> Tensor:
    """Weighted average of the sources by their weights. The base, if there is one, takes no part: name it as
    a source to include it. With equal weights this is the model soup.
    """
    total = sum(group.weights) if p.normalize else 1.0
    return weighted_sum(group.sources, [weight / total for weight in group.weights])
