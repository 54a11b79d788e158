"""DOGE: a shared change, found by projected descent, that brings each task back what the merge takes from it.

l_i = eta / |t_i|. P projects on the first floor(k / subspace) left singular vectors of all tasks' leading
floor(k / N) ones side by side, k = min(m, n). D minimises the sum over tasks and rows of
<t_j, t_j - sum l_i (t_i + D)>^2 by Adam from 0, its steps kept out of P. With masks M_i of the largest
entries of t_i: x = base + scale * sum l_i (t_i + D) M_i.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.matrices import by_matrix, mean
from merge.contract.method import Iteration, Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.contract.stats import Threshold
from merge.kernels.rowspace import adam_step
from merge.kernels.signs import below
from merge.kernels.sums import total, weighted_sum
from merge.kernels.thin import column_basis, thin


@params
class Doge:
    eta: float = knob(
        0.07,
        "Length that each task vector of a matrix is brought to. The default was tuned for CLIP: choose it "
        "anew for a language model.",
        ge=0,
        by_depth=True,
    )
    density: float = knob(
        0.3, "Share of each source's entries that is changed, those of its largest changes.", gt=0, le=1
    )
    scope: Literal["global", "tensor"] = knob(
        "global", "Rank the changes over the whole model, or within each tensor."
    )
    subspace: int = knob(
        6, "One such part of the directions is taken to be shared, and D stays out of it.", ge=1, le=1000
    )
    steps: int = knob(400, "Steps of the descent; stopping early is part of the method.", ge=0, le=500)
    rate: float = knob(1e-4, "Learning rate of the descent.", ge=0, le=0.01)
    projected: Literal["steps", "slopes"] = knob(
        "steps",
        "What is kept out of the shared directions: the steps, or, as the published code has it, the slopes, "
        "out of which Adam makes steps that are not.",
    )
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)


FIRST = 1e-7
"""How much longer the strongest direction of a source is made, to come before its others."""
STRIP_ENTRIES = 1 << 19
LEAST_WIDTH = 32
"""Of a strip: entries, and columns."""
LARGEST = Threshold(share="density", scope="scope")


@method(
    title="DOGE",
    kind=Kind.COMBINE,
    granularity="tensor",
    version=3,
    paper="arXiv:2501.01230",
    needs=Needs(base=True, stats=(LARGEST,)),
    workspace=Workspace(5.0, 0.5, 14.0, 2.5),
    iteration=Iteration("steps", 0.4),
    classes={"embed": "base", "head": "base", "norm": "base", "bias": "base"},
)
def doge(group: TensorGroup, p: Doge) -> Tensor:
    """Brings every task vector to one length and adds up their largest entries, together with a change that
    all share and that makes up, row by row, for what the sum does to each task, outside of the directions
    that the tasks have in common. For experts of one base; `eta` must fit the model. A source's weight
    multiplies its length. The published code moves in the shared directions after all, and stops at 100 per
    cent density; neither happens here. Embeddings, heads, norms and biases stay the base's, as published,
    unless `classes` says otherwise; kernels are averaged. Costs one eigendecomposition of the shorter side
    for each source, and `steps` cheap steps that take longer.
    """
    thresholds = group.stat(LARGEST)

    def plain(deltas: Sequence[Tensor]) -> Tensor:
        return mean([delta * weight for delta, weight in zip(deltas, group.weights, strict=True)])

    def merged(deltas: Sequence[Tensor]) -> Tensor:
        return _merged(deltas, group.weights, thresholds, p)

    return by_matrix(group, merged, plain, weighted=False).mul_(p.scale).add_(group.base)


def _merged(
    deltas: Sequence[Tensor], weights: Sequence[float], thresholds: Sequence[float], p: Doge
) -> Tensor:
    norms = [float(torch.linalg.vector_norm(delta, dtype=torch.float64)) for delta in deltas]
    factors = [w * p.eta / norm if norm > 0 else 0.0 for w, norm in zip(weights, norms, strict=True)]
    heard = [place for place, factor in enumerate(factors) if factor]
    found = torch.zeros_like(deltas[0], dtype=torch.float64)
    if not heard:
        return found
    common = _common([deltas[place] for place in heard], min(found.shape) // len(deltas), p)
    shared = _descended([deltas[place] for place in heard], [factors[place] for place in heard], common, p)
    for place in heard:
        kept = deltas[place].abs() > below(thresholds[place]) if thresholds[place] > 0 else 1.0
        found += (shared + deltas[place]) * kept * factors[place]
    return found


def _common(deltas: Sequence[Tensor], each: int, p: Doge) -> Tensor:
    """An orthonormal basis of the directions that D stays out of; it may be empty. Of directions that as many
    sources have, the stronger come first: without that, copies and single sources would leave the choice to
    rounding.
    """
    parts = [thin(delta, each) for delta in deltas]
    leading = [part.left * (1 + FIRST * (part.values / part.values[:1])) for part in parts]
    return column_basis(leading)[:, : min(deltas[0].shape) // p.subspace]


@dataclass(frozen=True)
class _Strip:
    """Some columns of every task vector, of D and of Adam's moments: few enough to stay in the processor's
    cache while a step works on them, so that it reads and writes memory once.
    """

    deltas: Sequence[Tensor]
    shared: Tensor
    first: Tensor
    second: Tensor

    def advance(self, pulls: Sequence[Tensor], common: Tensor, step: int, p: Doge) -> list[Tensor]:
        """Takes a step against the slope, the sum of ``pulls`` (m, 1) times task vectors; gives the inner
        products of the rows of every task vector with D.
        """
        slope = _without(weighted_sum(self.deltas, pulls), common)
        move = adam_step(slope, self.first, self.second, step)
        self.shared.sub_((_without(move, common) if p.projected == "steps" else move).mul_(p.rate))
        return [_dots(delta, self.shared) for delta in self.deltas]


def _descended(deltas: Sequence[Tensor], factors: Sequence[float], common: Tensor, p: Doge) -> Tensor:
    """D. Task vectors meet it in inner products of rows alone; but Adam divides entry by entry, which leaves
    every subspace, so that each step is on whole matrices.
    """
    reach = sum(factors)
    if not reach:
        return torch.zeros_like(deltas[0], dtype=torch.float64)
    merged = weighted_sum([delta.double() for delta in deltas], factors)
    lacks = [_dots(delta.double(), delta - merged) for delta in deltas]
    del merged
    strips = list(_strips(deltas, torch.float64 if p.projected == "slopes" else deltas[0].dtype))
    common = common.to(strips[0].shared)
    dots = [torch.zeros_like(lack) for lack in lacks]
    for step in range(1, p.steps + 1):
        pulls = [(dot * reach - lack) * (2 * reach) for dot, lack in zip(dots, lacks, strict=True)]
        narrow = [pull.to(common) for pull in pulls]
        rows = [strip.advance(narrow, common, step, p) for strip in strips]
        dots = [total(each) for each in zip(*rows, strict=True)]
    return torch.cat([strip.shared for strip in strips], dim=1).double()


def _strips(deltas: Sequence[Tensor], dtype: torch.dtype) -> Iterator[_Strip]:
    rows, columns = deltas[0].shape
    width = max(LEAST_WIDTH, STRIP_ENTRIES // rows)
    for first in range(0, columns, width):
        own = [delta[:, first : first + width].to(dtype).contiguous() for delta in deltas]
        yield _Strip(own, *(torch.zeros_like(own[0]) for _ in range(3)))


def _dots(one: Tensor, other: Tensor) -> Tensor:
    """The inner products of the rows, as a column, in float64."""
    return (one * other).sum(dim=1, keepdim=True, dtype=torch.float64)


def _without(matrix: Tensor, basis: Tensor) -> Tensor:
    """What is left of the matrix outside of the span of ``basis``, in its place."""
    return matrix.addmm_(basis, basis.T @ matrix, alpha=-1) if basis.shape[1] else matrix
