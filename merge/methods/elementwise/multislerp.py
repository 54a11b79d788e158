"""Multi-SLERP: the weighted mean on the sphere of any number of sources (the Frechet mean of directions).

The direction m minimises sum w_i angle(m, v_i)^2; x = m * sum w_i |v_i| / sum w_i, plus the base where there
is one, v_i being the sources or their differences from it.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Gram, points_of
from merge.kernels.geometry import resting_mean
from merge.kernels.sums import weighted_sum

PRODUCTS = Gram(points_of)


@params
class Multislerp:
    normalize: bool = knob(
        True, "Divide by the sum of the weights; else the lengths are added up, each times its weight."
    )


@method(
    title="Multi-SLERP",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="Karcher 1977, Riemannian center of mass; Buss and Fillmore 2001, Spherical averages",
    needs=Needs(base="optional", stats=(PRODUCTS,), weight_sum="normalize"),
    version=2,
)
def multislerp(group: TensorGroup, p: Multislerp) -> Tensor:
    """Spherical interpolation of any number of sources by their weights: directions are averaged along the
    sphere until nothing moves, lengths as numbers. With two sources the direction is SLERP's. Where the
    recipe names a base, the task vectors are merged so and added to it. Tensors that cancel each other are
    averaged as they are, and so are those whose negative weights leave the direction no place to rest.
    mergekit's method of this name is multislerp_flat.
    """
    total = sum(group.weights) if p.normalize else 1.0
    weights = tuple(weight / total for weight in group.weights)
    merged = weighted_sum(group.points, resting_mean(group.stat(PRODUCTS), weights))
    return merged if group.read_base is None else merged.add_(group.base)
