"""What a scheme may ask of the files, and the few steps that several schemes share."""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from merge.checkpoint.header import TensorInfo
from merge.file_errors import QuantizationMalformed

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of a four-bit float with two exponent bits and one of mantissa; bit 3 is the sign."""


class Parts(Protocol):
    """Stored parts of a tensor, each in its own dtype."""

    def read(self, part: TensorInfo, first: int, count: int) -> Tensor:
        """Entries ``first`` to ``first + count``, flat; the memory is used again at the next reading of a
        part of that size.
        """

    def columns(self, part: TensorInfo, first: int, last: int) -> Tensor:
        """Columns ``first`` to ``last`` (of the last side) of all lines (of the others): (lines, columns).
        Never written to, and only until the next asking for a part of that name.
        """

    def strip_of(self, tensor: TensorInfo, first: int, last: int, fill: Callable[[Tensor], None]) -> Tensor:
        """Rows ``first`` to ``last`` of a decoded matrix, which ``fill`` makes unless they are those that
        were made last.
        """


def lines(turned: Tensor) -> Tensor:
    """The same lying row by row, so that it can be seen as bytes: ``contiguous`` leaves a matrix of one
    column as it is, whatever its strides.
    """
    return turned.clone(memory_format=torch.contiguous_format)


def group_of_each(
    parts: Parts, named: TensorInfo | None, inputs: int, size: int, groups: int
) -> Tensor | None:
    """The group of each input, where they are not simply equal groups one after another."""
    group = None if named is None else _reordered(parts, named, size, groups)
    if group is None and size * groups != inputs:  # the last one is smaller
        group = torch.arange(inputs) // size
    return group


def _reordered(parts: Parts, named: TensorInfo, size: int, groups: int) -> Tensor | None:
    """The group of each input, where it is not simply input // size."""
    group = parts.read(named, 0, named.numel)
    if int(group.max()) < 0 or torch.equal(group, torch.arange(group.numel(), dtype=group.dtype) // size):
        return None
    if int(group.min()) < 0 or int(group.max()) >= groups:
        raise QuantizationMalformed(f"{named.name} names groups that have no scale.")
    return group.long()


def nibbles(packed: Tensor) -> Tensor:
    """Bytes (..., k) to their halves (..., 2k), the low one first; uint8."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def float_bytes(codes: Tensor, out: Tensor) -> None:
    """One-byte floats into float32 by a table of all 256: several times faster than a conversion."""
    torch.index_select(_table(codes.dtype), 0, codes.view(torch.uint8).int(), out=out)


def powers_of_two(exponents: Tensor) -> Tensor:
    """2 to the power of (byte - 127), float32: the scales of the MX formats."""
    return torch.exp2(exponents.float() - 127)


@lru_cache(maxsize=8)
def _table(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype).float()


@lru_cache(maxsize=1)
def e2m1_pairs() -> Tensor:
    """For each byte the two four-bit floats in it, the low half first, as one eight-byte entry."""
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])
    halves = nibbles(torch.arange(256, dtype=torch.uint8)[:, None]).int()
    return values[halves].view(torch.float64).view(-1)


def e2m1(codes: Tensor, out: Tensor) -> None:
    """Pairs of four-bit floats, flat, into float32 ``out`` of twice the length."""
    torch.index_select(e2m1_pairs(), 0, codes.int(), out=out.view(torch.float64))
