"""How far the softmax of a row moved, in float64 and without the rounding that cancellation would leave."""

import torch
from torch import Tensor

from merge.kernels.reduce import piece_sums


def row_divergence(values: Tensor, others: Tensor) -> Tensor:
    """KL(softmax(values) || softmax(others)) of each row of (rows, columns), in nats: float64 (rows, 1),
    never negative.
    """
    ours, theirs = _log_softmax(values), _log_softmax(others)
    terms = ours.exp().mul_(ours.sub_(theirs))
    return piece_sums(terms, values.shape[1]).view(-1, 1).clamp_(min=0)


def _log_softmax(rows: Tensor) -> Tensor:
    """Sums are folded in halves, so that neither block nor processor matters to their order."""
    shifted = rows.to(torch.float64)
    shifted = shifted - shifted.amax(dim=1, keepdim=True)
    return shifted.sub_(piece_sums(shifted.exp(), rows.shape[1]).view(-1, 1).log_())
