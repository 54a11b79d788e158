"""Sums that come out the same to the last bit however the work was cut: fixed pieces, folded in halves,
float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def piece_sums(values: Tensor, piece: int) -> Tensor:
    """float64 sums of consecutive pieces of ``piece`` entries of a flat tensor; the last one may be shorter.

    Each piece is folded by elementwise additions of its halves, so the order of additions depends on the
    length of the piece alone, never on the processor or on what else is in ``values``.
    """
    flat = values.reshape(-1)
    whole = flat.numel() // piece
    sums = [_fold(flat[: whole * piece].view(whole, piece))] if whole else []
    if flat.numel() > whole * piece:
        sums.append(_fold(flat[whole * piece :].view(1, -1)))
    return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64, device=values.device)


def column_sums(values: Tensor, rows: int) -> Tensor:
    """float64 (pieces, columns): sums down the columns of a matrix, over consecutive pieces of ``rows`` rows,
    folded likewise.
    """
    height, width = values.shape
    whole = height // rows
    sums = [_fold(values[: whole * rows].view(whole, rows, width))] if whole else []
    if height > whole * rows:
        sums.append(_fold(values[whole * rows :].unsqueeze(0)))
    return torch.cat(sums)


def _fold(rows: Tensor) -> Tensor:
    work = rows.to(torch.float64)
    owned = work is not rows
    width = work.shape[1]
    while width > 1:
        half = (width + 1) // 2
        if owned or width % 2:
            work = work if owned else work.clone()
            work[:, : width - half].add_(work[:, half:width])
        else:
            work = work[:, :half] + work[:, half:width]
        owned, width = True, half
    return work[:, 0].clone()


def in_order(values: Sequence[float]) -> float:
    """The values added one after another, first to last."""
    total = 0.0
    for value in values:
        total += value
    return total
