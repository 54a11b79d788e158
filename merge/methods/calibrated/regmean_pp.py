"""RegMean++: RegMean, with every layer's inputs as they come through the layers that are merged already.

The arithmetic is RegMean's. The Gram matrices are those of each source's own layer on what the merged layers
before it give on that source's data, so that a layer is merged for the inputs that it will be given.
"""

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.informed import Statistic
from merge.contract.least_squares import solved
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params

GRAM = Statistic("gram_merged", of="sources")


@params
class RegmeanPp:
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
    title="RegMean++",
    kind=Kind.COMBINE,
    granularity="tensor",
    paper="arXiv:2508.03121",
    needs=Needs(weight_sum=True, statistics=(GRAM,)),
)
def regmean_pp(group: TensorGroup, p: RegmeanPp) -> Tensor:
    """RegMean layer by layer: each linear layer is solved for the inputs that come through the layers merged
    before it, on every source's own data. A source's weight multiplies its Gram matrix. Tensors without a
    Gram matrix (embeddings, norms, biases) are averaged by the weights.
    """
    return solved(group, GRAM, p.alpha, p.ridge)
