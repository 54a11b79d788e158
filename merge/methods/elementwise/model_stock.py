"""Model Stock: how far to go from the base towards the average, from the angle between the task vectors.

With c the mean cosine between two task vectors and N sources, t = N c / (1 + (N - 1) c), and
x = base + t * mean(tau_i). With shares a_i = w_i / sum w, N becomes 1 / sum a_i^2, the pair (i, j) counts
a_i a_j in the mean cosine, and the mean is sum a_i tau_i: the same where all weights are equal.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Gram
from merge.kernels.reduce import piece_sums
from merge.kernels.sums import weighted_sum

PRODUCTS = Gram(when=("along", ("tensor",)))


@params
class ModelStock:
    along: Literal["tensor", "rows"] = knob(
        "tensor",
        "Whether angle and ratio are those of the whole tensor, or of each of its rows (filter-wise). A "
        "tensor of one dimension is one row.",
    )


@method(
    title="Model Stock",
    kind=Kind.COMBINE,
    granularity="row",
    paper="arXiv:2403.19522",
    needs=Needs(base=True, sources=(2, None), stats=(PRODUCTS,), weight_sum=True),
)
def model_stock(group: TensorGroup, p: ModelStock) -> Tensor:
    """Averages the sources and moves that average towards the base, the further the less the task vectors
    agree: parallel ones give the average, ones at right angles (or worse) the base. A task vector of zeros
    is at right angles to all others. Weights are shares of the average.
    """
    total = sum(group.weights)
    shares = [weight / total for weight in group.weights]
    ratio = _ratio(_cosine(list(_products(group, p)), shares), shares).to(group.base.dtype)
    return weighted_sum(group.deltas, shares).mul_(ratio).add_(group.base)


def _products(group: TensorGroup, p: ModelStock) -> Iterator[list[Tensor]]:
    """Rows of the matrix of inner products, float64, each of a shape that broadcasts over the block."""
    if p.along == "tensor":
        for row in group.stat(PRODUCTS):
            yield list(torch.tensor(row, dtype=torch.float64, device=group.base.device))
        return
    wide = [delta.to(torch.float64) for delta in group.deltas]
    columns = wide[0].shape[1]
    found = {
        (i, j): piece_sums(wide[i] * wide[j], columns).unsqueeze(1)
        for i in range(len(wide))
        for j in range(i, len(wide))
    }
    for i in range(len(wide)):
        yield [found[min(i, j), max(i, j)] for j in range(len(wide))]


def _cosine(products: Sequence[Sequence[Tensor]], shares: Sequence[float]) -> Tensor:
    """The mean cosine between two task vectors."""
    lengths = [row[place].sqrt() for place, row in enumerate(products)]
    found = torch.zeros_like(lengths[0])
    counted = 0.0
    for i, j in combinations(range(len(shares)), 2):
        length = lengths[i] * lengths[j]
        cosine = torch.where(length > 0, products[i][j] / torch.where(length > 0, length, 1), 0)
        found += cosine.clamp_(-1, 1) * abs(shares[i] * shares[j])
        counted += abs(shares[i] * shares[j])
    return found / counted if counted else found + 1


def _ratio(cosine: Tensor, shares: Sequence[float]) -> Tensor:
    """t in 0 to 1; a negative mean cosine gives 0."""
    spread = sum(share * share for share in shares)
    cosine = cosine.clamp(min=0)
    return (cosine / (cosine + (1 - cosine) * spread)).clamp_(0, 1)
