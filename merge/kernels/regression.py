"""Least squares over several sets of inputs that are known by their Gram matrices alone.

The arithmetic is float64 at any width: float32 solves are off by up to 2e-4 of the solution at alpha 0.9, and
by half of it and more at alpha 1 where the spectrum of the inputs is steep.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TRIES = 7


@dataclass(frozen=True)
class System:
    """What tensors with the same inputs share: each source's shrunk Gram matrix times its share (float64),
    and the Cholesky factor of their sum; ``None`` where there is nothing to solve.
    """

    grams: tuple[Tensor, ...]
    factor: Tensor | None

    def around(self, weights: Sequence[Tensor], mean: Tensor) -> Tensor:
        """The solution (inputs, outputs), for the difference to ``mean``, in its dtype."""
        if self.factor is None:
            return mean.clone()
        center = mean.double()
        target = torch.zeros_like(center)
        for weight, gram in zip(weights, self.grams, strict=True):
            target.addmm_(gram, weight.double() - center)
        return (center + torch.cholesky_solve(target, self.factor)).to(mean.dtype)


def system_of(grams: Iterable[Tensor], shares: Sequence[float], alpha: float, ridge: float) -> System:
    """The normal equations of sum_i shares_i |X_i W - X_i W_i|^2.

    ``grams`` are X_i'X_i over the tokens (each let go of before the next is asked for), whose off-diagonal
    entries are multiplied by ``alpha``. ``ridge`` times the mean diagonal is added to the diagonal (more
    where that does not do), so that directions without data keep the mean.
    """
    shrunk = tuple(_shrunk(gram, share, alpha) for gram, share in zip(grams, shares, strict=True))
    total = shrunk[0].clone()
    for each in shrunk[1:]:
        total += each
    scale = float(total.diagonal().abs().mean()) if total.numel() else 0.0
    for attempt in range(_TRIES if scale > 0 else 0):
        jittered = total.clone()
        jittered.diagonal().add_(scale * min(1.0, ridge * 10.0**attempt))
        factor, failed = torch.linalg.cholesky_ex(jittered)
        if not int(failed):
            return System(shrunk, factor)
    return System((), None)


def by_grams(
    sources: Sequence[Tensor],
    mean: Tensor,
    axis: int,
    system_at: Callable[[int | None], System],
) -> Tensor:
    """The tensor whose outputs on every source's inputs are nearest to that source's own. Its input channels
    lie along ``axis``; of a stack of experts (3 axes) each is solved by itself. ``system_at`` gives the
    system of an expert, or of all (``None``).
    """
    last = axis == mean.dim() - 1
    center, *turned = [tensor.mT if last else tensor for tensor in (mean, *sources)]
    if mean.dim() == 2:
        found = system_at(None).around(turned, center)
    else:
        each = (system_at(i).around([t[i] for t in turned], center[i]) for i in range(len(center)))
        found = torch.stack(list(each))
    return (found.mT if last else found).contiguous()


def _shrunk(gram: Tensor, share: float, alpha: float) -> Tensor:
    exact = gram.to(torch.float64, copy=True)
    diagonal = exact.diagonal().clone()
    exact.mul_(share * alpha).diagonal().copy_(diagonal * share)
    return exact
