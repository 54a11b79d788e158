"""The least squares of a tensor whose inputs are known by each source's Gram matrix, for RegMean's family."""

from collections.abc import Sequence

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.informed import Matrix, Statistic
from merge.contract.params import knob, params
from merge.kernels.regression import System, by_grams, system_of
from merge.kernels.sums import anchored_mean


@params
class LeastSquares:
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


def solved(group: TensorGroup, gram: Statistic, p: LeastSquares) -> Tensor:
    """The weighted mean of the sources, and from it the least squares where every source has a Gram matrix.

    Tensors with the same inputs (q, k and v; gate and up) share one factorisation.
    """
    found: tuple[Matrix | None, ...] = group.statistic(gram)
    known = [matrix for matrix in found if matrix is not None]
    mean = anchored_mean(group.sources, group.weights)
    if len(known) < len(found):
        return mean

    def system_at(expert: int | None) -> System:
        return _system(known, expert, group.weights, p.alpha, p.ridge)

    return by_grams(group.sources, mean, known[0].axis, system_at)


def _system(
    known: Sequence[Matrix], expert: int | None, weights: tuple[float, ...], alpha: float, ridge: float
) -> System:
    def made() -> System:
        if expert is None:
            return system_of((matrix.read() for matrix in known), weights, alpha, ridge)
        return system_of((matrix.values[expert] for matrix in known), weights, alpha, ridge)

    memo, names = known[0].memo, tuple(matrix.name for matrix in known)
    if memo is None or expert is not None or None in names:
        return made()
    return memo.once((names, weights, alpha, ridge), made)
