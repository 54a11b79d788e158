"""RegMean++: RegMean, with every layer's inputs as they come through the layers that are merged already.

The arithmetic is RegMean's. The Gram matrices are those of each source's own layer on what the merged layers
before it give on that source's data, so that a layer is merged for the inputs that it will be given.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.informed import Statistic
from merge.contract.least_squares import LeastSquares, solved
from merge.contract.method import Kind, Needs, method

GRAM = Statistic("gram_merged", of="sources")


@method(
    title="RegMean++",
    kind=Kind.COMBINE,
    granularity="tensor",
    paper="arXiv:2508.03121",
    needs=Needs(weight_sum=True, statistics=(GRAM,)),
)
def regmean_pp(group: TensorGroup, p: LeastSquares) -> Tensor:
    """RegMean layer by layer: each linear layer is solved for the inputs that come through the layers merged
    before it, on every source's own data. A source's weight multiplies its Gram matrix. Tensors without a
    Gram matrix (embeddings, norms, biases) are averaged by the weights.
    """
    return solved(group, GRAM, p)
