"""Norm repair (ours): gives a merge back the length that averaging took, or that adding put on.

With a base, |m - base| is to be the weighted mean of |tau_i|; without one, |m| that of |x_i|. f = (wanted /
has) ^ strength, held between 1 / most and most; x = base + f (m - base), or f m. ``to: base``: |m| is to be
|base|, x = f m. Norms are those of the whole tensor.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Norm


@params
class NormRepair:
    to: Literal["sources", "base"] = knob(
        "sources",
        "sources: the mean length of the sources' changes (of the sources themselves, where there is no "
        "base); base: the length of the base's tensor, after unlearning, say.",
    )
    strength: float = knob(
        1.0, "How much of the way: 0 leaves the merge as it is.", ge=0, le=1, by_depth=True
    )
    most: float = knob(
        2.0, "The largest factor; its reciprocal is the smallest. A bound on what noise can do.", ge=1
    )


def _lengths(merged: Tensor, group: TensorGroup, p: NormRepair) -> Sequence[Tensor]:
    if p.to == "base":
        return merged, group.base
    return merged if group.read_base is None else merged - group.base, *group.points


LENGTHS = Norm(_lengths)


@method(
    title="Norm repair",
    kind=Kind.ADJUST,
    elementwise=True,
    needs=Needs(base="optional", stats=(LENGTHS,), base_for={"to": ("base",)}),
)
def norm_repair(merged: Tensor, group: TensorGroup, p: NormRepair) -> Tensor:
    """Our own. Task vectors that point apart cancel in a mean: of N at right angles 1 / sqrt(N) of the length
    is left, and a sum of parallel ones is N times too long. This scales the change of each tensor to the
    mean length of the sources' changes, and leaves its direction alone. Try it after linear,
    task_arithmetic, model_stock or unlearn, and score with and without: a shrunken change is sometimes
    the better one. Costs one more reading of all models.
    """
    has, *others = group.stat(LENGTHS)
    sizes = [1.0] if p.to == "base" else [abs(weight) for weight in group.weights]
    whole = sum(sizes)
    if not has or not whole:
        return merged
    wanted = sum(size * length for size, length in zip(sizes, others, strict=True)) / whole
    factor = float(min(max((wanted / has) ** p.strength, 1 / p.most), p.most))
    if factor == 1:
        return merged
    if p.to == "base" or group.read_base is None:
        return merged * factor
    return (merged - group.base).mul_(factor).add_(group.base)
