"""RegMean: the weights whose outputs are nearest to every source's own outputs on its own inputs.

With G_i = X_i' X_i / tokens of source i, its off-diagonal entries times alpha, weights c_i, M the weighted
mean: W = M + [(sum c_i G_i)^-1 sum c_i G_i (W_i - M)']'. Solving around the mean is the published formula
where the sum is regular, and keeps the mean in directions that no data reached.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.informed import Statistic
from merge.contract.least_squares import solved
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params

GRAM = Statistic("gram", of="sources")


@params
class Regmean:
    alpha: float = knob(
        0.9,
        "What entries off the Gram matrices' diagonals are multiplied by; 0 weighs each input channel alone.",
        ge=0,
        le=1,
        by_depth=True,
    )
    ridge: float = knob(
        1e-6,
        "Added to the diagonal of the system, as a share of its mean, so that it can be solved.",
        gt=0,
        le=1,
    )


@method(
    title="RegMean",
    kind=Kind.COMBINE,
    granularity="tensor",
    paper="arXiv:2212.09849",
    needs=Needs(weight_sum=True, statistics=(GRAM,)),
)
def regmean(group: TensorGroup, p: Regmean) -> Tensor:
    """Merges each linear layer by least squares, in closed form: the merged layer gives, on every source's
    own inputs, outputs as near as possible to that source's. A source's weight multiplies its Gram matrix.
    Tensors without a Gram matrix (embeddings, norms, biases) are averaged by the weights.
    """
    return solved(group, GRAM, p.alpha, p.ridge)
