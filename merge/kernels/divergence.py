"""How far the softmax of a row moved, in float64 and without the rounding that cancellation would leave.

With weights w = exp(x) and d = y - x, KL(softmax(x) || softmax(y)) = log(sum w exp(d) / sum w) - sum w d /
sum w: three sums along the row, of which the first is reckoned from exp(d) - 1 - d, so that rows that hardly
moved lose nothing. What relative error w has only stands for another x that is as near.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from merge.kernels.curves import beyond, power
from merge.kernels.reduce import piece_sums

FAR, WIDE = 16.0, 1.0
"""Magnitudes, and changes, up to which the three sums are taken."""


def divergence_terms(values: Tensor, others: Tensor, most: float, apart: float) -> list[Tensor]:
    """float64 terms of KL(softmax(values) || softmax(others)) of rows (rows, columns), whose sums along them
    ``divergence`` takes. No magnitude is larger than ``most``, no difference than ``apart``; from large
    ones it is told by its definition, which no compiled loop can follow.
    """
    wide = values.to(torch.float64)
    if most > FAR or apart > WIDE:
        ours, theirs = _log_softmax(wide), _log_softmax(others.to(torch.float64))
        return [ours.exp().mul_(ours.sub_(theirs))]
    moved = others.to(torch.float64) - wide
    weights = power(wide, most)
    return [weights, weights * moved, beyond(moved, apart).mul_(weights)]


def divergence(sums: Sequence[Tensor]) -> Tensor:
    """In nats, of each row; never negative."""
    if len(sums) == 1:
        return sums[0].clamp(min=0)
    whole, moved, bent = sums
    return torch.log1p((moved + bent) / whole).sub_(moved / whole).clamp_(min=0)


def _log_softmax(rows: Tensor) -> Tensor:
    """Sums are folded in halves, so that neither block nor processor matters to their order."""
    shifted = rows - rows.amax(dim=1, keepdim=True)
    return shifted.sub_(piece_sums(shifted.exp(), rows.shape[1]).view(-1, 1).log_())
