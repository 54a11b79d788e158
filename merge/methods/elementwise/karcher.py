"""Karcher mean: the direction with the least sum of squared angles to all sources, by iteration.

With u_i = x_i / |x_i| and shares a_i = w_i / sum w: m starts at the normalised sum of a_i u_i; then
T = sum a_i (theta_i / sin theta_i) (u_i - cos(theta_i) m), cos theta_i = <u_i, m>, and
m <- cos|T| m + sin|T| T/|T|, until |T| < tol. x = m * sum a_i |x_i|.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Gram, sources_of
from merge.kernels.geometry import resting_mean
from merge.kernels.sums import weighted_sum

PRODUCTS = Gram(sources_of)


@params
class Karcher:
    max_iter: int = knob(10, "Most steps of the iteration.", ge=0, le=1000)
    tol: float = knob(1e-5, "The iteration ends where its next step is shorter than this, in radians.", gt=0)


@method(
    title="Karcher mean",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="Karcher 1977, Riemannian center of mass; arXiv:2603.04972",
    needs=Needs(stats=(PRODUCTS,), weight_sum=True),
    version=2,
)
def karcher(group: TensorGroup, p: Karcher) -> Tensor:
    """Mean on the sphere: every tensor is seen as a direction and a length; directions are averaged along the
    sphere, lengths as numbers, both by the sources' weights. The base, if there is one, takes no part; for
    the mean of task vectors take multislerp. Tensors that cancel each other have no mean direction and are
    averaged as they are, and so are those whose negative weights leave the direction no place to rest; a
    tensor of zeros has no say in the direction.
    """
    total = sum(group.weights)
    shares = tuple(weight / total for weight in group.weights)
    return weighted_sum(group.sources, resting_mean(group.stat(PRODUCTS), shares, p.max_iter, p.tol))
