"""Least squares over several sets of inputs that are known by their Gram matrices alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

WIDEST = 4096
"""Input channels up to which the arithmetic is float64."""
_TRIES = 7


def around_mean(
    weights: Sequence[Tensor],
    mean: Tensor,
    grams: Sequence[Tensor],
    shares: Sequence[float],
    alpha: float,
    ridge: float,
) -> Tensor:
    """W (inputs, outputs) that minimises sum_i shares_i |X_i W - X_i weights_i|^2, in the dtype of ``mean``.

    ``grams`` are X_i'X_i over the tokens, whose off-diagonal entries are multiplied by ``alpha``. Solved for
    the difference to ``mean`` by Cholesky, with ``ridge`` times the mean diagonal added to the diagonal (more
    where that does not do), so that directions without data keep the mean.
    """
    exact = torch.float64 if mean.shape[0] <= WIDEST else torch.float32
    system = torch.zeros(grams[0].shape, dtype=exact, device=mean.device)
    target = torch.zeros(mean.shape, dtype=exact, device=mean.device)
    center = mean.to(exact)
    for weight, gram, share in zip(weights, grams, shares, strict=True):
        shrunk = gram.to(exact, copy=True)
        diagonal = shrunk.diagonal().clone()
        shrunk.mul_(share * alpha).diagonal().copy_(diagonal * share)
        system += shrunk
        target += shrunk @ (weight.to(exact) - center)
        del shrunk
    scale = float(system.diagonal().abs().mean()) if system.numel() else 0.0
    if scale == 0:
        return mean.clone()
    for attempt in range(_TRIES):
        jittered = system.clone()
        jittered.diagonal().add_(scale * min(1.0, ridge * 10.0**attempt))
        factor, failed = torch.linalg.cholesky_ex(jittered)
        if not int(failed):
            return (center + torch.cholesky_solve(target, factor)).to(mean.dtype)
    return mean.clone()
