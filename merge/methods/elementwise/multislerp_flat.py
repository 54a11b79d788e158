"""Multi-SLERP in one step: the sum of the weighted directions, brought to the weighted mean length.

x = (sum w_i |v_i|) * (sum w_i v_i / |v_i|) / |sum w_i v_i / |v_i||, plus the base where there is one. A
tangent step at that direction, taken with orthogonal projections, is zero, so it ends where it starts.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Gram, points_of
from merge.kernels.geometry import spherical_mean
from merge.kernels.sums import weighted_sum

PRODUCTS = Gram(points_of)


@params
class MultislerpFlat:
    normalize: bool = knob(
        True, "Divide by the sum of the weights; else the lengths are added up, each times its weight."
    )


@method(
    title="Multi-SLERP (flat)",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="mergekit's multislerp",
    needs=Needs(base="optional", stats=(PRODUCTS,), weight_sum="normalize"),
)
def multislerp_flat(group: TensorGroup, p: MultislerpFlat) -> Tensor:
    """What mergekit calls multislerp: the weighted sum of the directions, scaled to the weighted mean of the
    lengths. Close to multislerp where all sources point much the same way, and off the arc where they do
    not. Where the recipe names a base, the task vectors are merged so and added to it.
    """
    total = sum(group.weights) if p.normalize else 1.0
    weights = tuple(weight / total for weight in group.weights)
    merged = weighted_sum(group.points, spherical_mean(group.stat(PRODUCTS), weights, 0, 1.0))
    return merged if group.read_base is None else merged.add_(group.base)
