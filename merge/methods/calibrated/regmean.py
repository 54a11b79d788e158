"""RegMean: the weights whose outputs are nearest to every source's own outputs on its own inputs.

With G_i = X_i' X_i / tokens of source i, its off-diagonal entries times alpha, weights c_i, M the weighted
mean: W = M + [(sum c_i G_i)^-1 sum c_i G_i (W_i - M)']'. Solving around the mean is the published formula
where the sum is regular, and keeps the mean in directions that no data reached.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.informed import Statistic
from merge.contract.least_squares import LeastSquares, solved
from merge.contract.method import Kind, Needs, method

GRAM = Statistic("gram", of="sources")


@method(
    title="RegMean",
    kind=Kind.COMBINE,
    granularity="tensor",
    paper="arXiv:2212.09849",
    needs=Needs(weight_sum=True, statistics=(GRAM,)),
)
def regmean(group: TensorGroup, p: LeastSquares) -> Tensor:
    """Merges each linear layer by least squares, in closed form: the merged layer gives, on every source's
    own inputs, outputs as near as possible to that source's. A source's weight multiplies its Gram matrix.
    Tensors without a Gram matrix (embeddings, norms, biases) are averaged by the weights.
    """
    return solved(group, GRAM, p)
