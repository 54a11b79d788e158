"""Ranks of magnitudes within rows, by one sort of integers that carry their own place.

Every entry becomes an int64 with the bits of its float32 magnitude above and its column below, so that no
two are equal: any sorting algorithm gives one and the same order, and the column comes along for free.
"""

import torch
from torch import Tensor

from merge.kernels.radix import MAGNITUDE, places

_COLUMN = 0xFFFFFFFF
_TOGETHER = 1 << 17
"""Entries sorted at a time: what is made of them stays in the processor's cache."""
_LIBRARY = torch.library.Library("mergery", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("row_ranks(Tensor values, bool shared) -> Tensor")  # type: ignore[no-untyped-call]


def row_ranks(values: Tensor, *, shared: bool = True) -> Tensor:
    """float32 ranks of the magnitudes of (rows, columns) within each row, 0 for the smallest.

    Equal magnitudes share the mean of their places, so the mean rank of a row is (columns - 1) / 2 whatever
    is in it; unless ``shared`` is false: then they rank by their columns.
    """
    ranks: Tensor = torch.ops.mergery.row_ranks(values, shared)
    return ranks


@torch.library.impl(_LIBRARY, "row_ranks", "CompositeExplicitAutograd")
def _row_ranks(values: Tensor, shared: bool) -> Tensor:
    """One operation to whoever follows what a method does."""
    found = torch.zeros_like(values, dtype=torch.float32, memory_format=torch.contiguous_format)
    height = max(1, _TOGETHER // max(1, values.shape[1]))
    for first in range(0, values.shape[0] if values.numel() else 0, height):
        found[first : first + height] = _ranks(values[first : first + height], shared)
    return found


def _ranks(values: Tensor, shared: bool) -> Tensor:
    columns = values.shape[1]
    keys = values.to(torch.float32).contiguous().view(torch.int32).bitwise_and(MAGNITUDE).to(torch.int64)
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
