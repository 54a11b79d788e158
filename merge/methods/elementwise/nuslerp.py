"""NuSLERP: SLERP with the place on the arc given by weights, of whole tensors, rows or columns.

t = w_2 / (w_1 + w_2); with theta the angle between v_1 and v_2,
x = (sin((1-t) theta) v_1 + sin(t theta) v_2) / sin(theta), plus the base where there is one, v_i being the
sources or their differences from it; where v_1 and v_2 are parallel, opposite or zero, (1-t) v_1 + t v_2.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from merge.contract.groups import Site, TensorGroup
from merge.contract.method import Kind, Lines, Needs, method
from merge.contract.params import knob, params
from merge.contract.rows import ColumnNumbers, MatrixSums
from merge.contract.stats import Gram, Part, Stat, points_of
from merge.kernels.geometry import arc
from merge.kernels.reduce import column_sums, piece_sums
from merge.kernels.sums import weighted_sum


def _matrices(group: TensorGroup, p: Any) -> Sequence[Tensor]:
    """What is turned, unless it is a vector, which is turned as one; of a stack so many matrices."""
    return [] if group.site.flat else [_apart(point, group.site) for point in points_of(group, p)]


def _apart(tensor: Tensor, site: Site) -> Tensor:
    return tensor.view(-1, *site.shape[1:]) if site.stacked else tensor


class ColumnGram(Stat):
    """Inner products of two quantities column by column: float64, <a, a>, <a, b>, <b, b> of every column."""

    def measure(self, values: Sequence[Tensor], p: Any, piece: int, so_far: Any) -> list[Tensor]:  # noqa: ARG002
        """(pieces, columns) of each, or (matrices, columns, 1) of whole ones; nothing of a vector."""
        if not values:
            return []
        a, b = (value.to(torch.float64) for value in values)
        pairs = ((a, a), (a, b), (b, b))
        if a.dim() == 3:
            return [torch.stack([column_sums(m, len(m))[0] for m in x * y]).unsqueeze(2) for x, y in pairs]
        rows = max(1, piece // a.shape[1])
        return [column_sums(x * y, rows) for x, y in pairs]

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:  # noqa: ARG002
        """``ColumnNumbers``: the sums over all pieces, or of every matrix."""
        if not part.lines:
            return ColumnNumbers(part.total, 0)
        sums = [each.squeeze(2) for each in part.joined()]
        return ColumnNumbers(sums, elements // len(sums[0]))

    def part(self) -> Part:
        """Columns."""
        return MatrixSums()


WHOLE = Gram(points_of, when=("along", ("tensor",)))
BY_COLUMN = ColumnGram(_matrices, when=("along", ("columns",)))


@params
class Nuslerp:
    along: Literal["tensor", "rows", "columns"] = knob(
        "tensor",
        "What is turned: the whole tensor as one vector, each of its rows (output units), or each of its "
        "columns (inputs; the other way round where weights are stored so, as GPT-2's). A tensor of one "
        "dimension is one vector.",
    )


@method(
    title="NuSLERP",
    kind=Kind.COMBINE,
    granularity="row",
    paper="Shoemake 1985, Animating rotation with quaternion curves",
    needs=Needs(base="optional", sources=(2, 2), stats=(WHOLE, BY_COLUMN), weight_sum=True),
    lines=Lines("columns", 16.0, when=("along", ("columns",))),
)
def nuslerp(group: TensorGroup, p: Nuslerp) -> Tensor:
    """Spherical interpolation of two sources by their weights; only the ratio of the weights matters. Where
    the recipe names a base, the task vectors are interpolated and added to it. Unlike slerp it keeps to the
    arc for small angles too.
    """
    a, b = (_apart(point, group.site) for point in group.points) if p.along == "columns" else group.points
    share = group.weights[1] / sum(group.weights)
    factors = [factor.to(a.dtype) for factor in arc(*_products(a, b, group, p), share)]
    merged = weighted_sum((a, b), factors).view(group.sources[0].shape)
    return merged if group.read_base is None else merged.add_(group.base)


def _products(a: Tensor, b: Tensor, group: TensorGroup, p: Nuslerp) -> tuple[Tensor, Tensor, Tensor]:
    """<a, a>, <a, b>, <b, b> of what is turned, float64, of a shape that broadcasts over the block."""
    if p.along == "tensor":
        (aa, ab), (_, bb) = group.stat(WHOLE)
        one, two, three = torch.tensor([aa, ab, bb], dtype=torch.float64, device=a.device)
    elif p.along == "columns" and not group.site.flat:
        one, two, three = (sums.to(a.device) for sums in group.stat(BY_COLUMN))
    else:
        wide = a.to(torch.float64), b.to(torch.float64)
        one, two, three = (
            piece_sums(wide[i] * wide[j], a.shape[1]).unsqueeze(1) for i, j in ((0, 0), (0, 1), (1, 1))
        )
    return one, two, three
