"""How far the softmax of a row moved, in float64 and without the rounding that cancellation would leave."""

import torch
from torch import Tensor

from merge.kernels.reduce import piece_sums

_TOGETHER = 1 << 15
"""Entries at a time: what is made of them stays in the processor's cache."""


def row_divergence(values: Tensor, others: Tensor) -> Tensor:
    """KL(softmax(values) || softmax(others)) of each row of (rows, columns), in nats: float64 (rows, 1),
    never negative.
    """
    found = torch.empty(values.shape[0], 1, dtype=torch.float64, device=values.device)
    height = max(1, _TOGETHER // max(1, values.shape[1]))
    for first in range(0, values.shape[0], height):
        rows = slice(first, first + height)
        ours, theirs = _log_softmax(values[rows]), _log_softmax(others[rows])
        terms = ours.exp().mul_(ours.sub_(theirs))
        found[rows] = piece_sums(terms, values.shape[1]).view(-1, 1).clamp_(min=0)
    return found


def _log_softmax(rows: Tensor) -> Tensor:
    """Sums are folded in halves, so that neither block nor processor matters to their order."""
    shifted = rows.to(torch.float64)
    shifted = shifted - shifted.amax(dim=1, keepdim=True)
    return shifted.sub_(piece_sums(shifted.exp(), rows.shape[1]).view(-1, 1).log_())
