"""The exact k-th largest magnitude of any number of float32 values, in two counting passes.

The bits of a non-negative float32 grow with its value. Pass one counts the upper 15 of its 31 bits, pass two
the lower 16 of those values that share the upper bits of the wanted one. Counts add up over blocks, shards
and machines.
"""

import numpy as np
import torch
from torch import Tensor

HIGH_BINS = 1 << 15
LOW_BINS = 1 << 16
_LOW_MASK = LOW_BINS - 1
_GROUP = 256
MAGNITUDE = 0x7FFFFFFF


def count_high(values: Tensor) -> Tensor:
    """int64 counts (32768) of the upper bits of the magnitudes of a flat float32 tensor."""
    bits = values.view(torch.int32).bitwise_and(MAGNITUDE).bitwise_right_shift_(16)
    return torch.bincount(bits, minlength=HIGH_BINS)


def count_low(values: Tensor, high: int) -> Tensor:
    """int64 counts (65536) of the lower bits of those magnitudes whose upper bits are ``high``."""
    bits = values.view(torch.int32).bitwise_and(MAGNITUDE)
    chosen = places(bits.bitwise_right_shift(16).eq_(high).bool())
    return torch.bincount(bits[chosen].bitwise_and_(_LOW_MASK), minlength=LOW_BINS)


def places(mask: Tensor) -> Tensor:
    """Indices of what is true; numpy's search is several times quicker than torch's on the CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().view(-1)


def largest(values: Tensor, rank: int) -> float:
    """The ``rank``-th largest magnitude (from 1) of a few float32 values; on the CPU by numpy's selection,
    which is several times quicker than torch's.
    """
    sizes = values.reshape(-1).to(torch.float32).abs()
    place = sizes.numel() - rank
    if sizes.device.type == "cpu":
        found = sizes.numpy()
        found.partition(place)
        return float(found[place])
    return float(sizes.kthvalue(place + 1).values)


def find_bin(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the ``rank``-th largest value (from 1), and the rank it has inside that bin; bin -1
    where there are not so many.
    """
    if counts.numel() > _GROUP and counts.numel() % _GROUP == 0:
        groups = counts.view(-1, _GROUP)
        place, rank = find_bin(_sums(groups), rank)
        at, rank = find_bin(groups[place], rank) if place >= 0 else (-1, rank)
        return place * _GROUP + at if place >= 0 else -1, rank
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return counts.numel() - 1 - place, rank - above


def _sums(groups: Tensor) -> Tensor:
    """int64 sums of the rows; numpy's are several times quicker than torch's on whole numbers."""
    if groups.device.type == "cpu":
        return torch.from_numpy(groups.numpy().sum(axis=1, dtype=np.int64))
    return groups.sum(dim=1)


def as_float(high: int, low: int) -> float:
    """The float32 magnitude with these upper and lower bits."""
    return float(torch.tensor([high << 16 | low], dtype=torch.int32).view(torch.float32))
