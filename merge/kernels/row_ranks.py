"""Ranks of magnitudes within rows, by one sort of integers that carry their own place.

Every entry becomes an int64 with the bits of its float32 magnitude above and its column below, so that no
two are equal: any sorting algorithm gives one and the same order, and the column comes along for free.
"""

import torch
from torch import Tensor

from merge.kernels.radix import places

_MAGNITUDE = 0x7FFFFFFF
_COLUMN = 0xFFFFFFFF


def row_ranks(values: Tensor, *, shared: bool = True) -> Tensor:
    """float32 ranks of the magnitudes of (rows, columns) within each row, 0 for the smallest.

    Equal magnitudes share the mean of their places, so the mean rank of a row is (columns - 1) / 2 whatever
    is in it; unless ``shared`` is false: then they rank by their columns.
    """
    if not values.numel():
        return torch.zeros_like(values, dtype=torch.float32)
    columns = values.shape[1]
    keys = values.to(torch.float32).contiguous().view(torch.int32).bitwise_and(_MAGNITUDE).to(torch.int64)
    keys.bitwise_left_shift_(32).bitwise_or_(torch.arange(columns, device=values.device))
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
    else:
        keys = keys.sort(dim=1).values
    if shared:
        ranks = _shared_places(keys.bitwise_right_shift(32))
    else:
        ranks = torch.arange(columns, dtype=torch.float32, device=keys.device).expand(keys.shape)
    return torch.empty_like(ranks).scatter_(1, keys.bitwise_and_(_COLUMN), ranks)


def _shared_places(ordered: Tensor) -> Tensor:
    """For each place of ascending rows, the mean of the places that hold the same value."""
    columns = ordered.shape[1]
    new = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=new[:, 1:])
    run = new.view(-1).cumsum(0, dtype=torch.int32).sub_(1)
    starts = places(new.view(-1))
    ends = torch.cat([starts[1:], starts.new_tensor([ordered.numel()])])
    middles = starts.remainder(columns).mul_(2).add_(ends).sub_(starts).sub_(1).to(torch.float32).mul_(0.5)
    return middles.index_select(0, run).view(ordered.shape)
