"""Ranks from fewer bits are the ranks that all bits give."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from merge.blocks import Buffers
from merge.fused import ordering
from merge.fused.compiler import Compiler
from merge.kernels.row_ranks import row_ranks


def near(rows: int, columns: int) -> Tensor:
    """Changes of stored weights: few digits, many equal."""
    generator = torch.Generator().manual_seed(columns)
    base = (torch.randn(rows, columns, generator=generator) * 0.02).to(torch.bfloat16)
    moved = base.float() + torch.randn(rows, columns, generator=generator) * 1e-3
    return moved.to(torch.bfloat16).float() - base.float()


def fine(rows: int, columns: int) -> Tensor:
    """All digits; some too small beside the largest to be told apart by a few bits; zeros of both signs."""
    generator = torch.Generator().manual_seed(columns)
    values = torch.randn(rows, columns, generator=generator)
    values[:, 1::5] *= 1e-9
    values[:, 2::7] = 0.0
    values[:, 3::11] = -0.0
    return values


def crowded(rows: int, columns: int) -> Tensor:
    """In falling order, and so close that the bits which are sorted first say nothing."""
    values = 1.0 + torch.arange(columns, 0, -1).repeat(rows, 1) * 2.0**-23
    values[0] = near(1, columns)[0]
    return values


@pytest.mark.parametrize("make", [near, fine, crowded])
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 33, 2048, 5632, 40_000])
def test_ranks_are_those_of_the_eager_code(make: Callable[[int, int], Tensor], columns: int) -> None:
    built, buffers = Compiler().build(ordering.ORDERING), Buffers()
    assert built is not None
    values = make(3, columns)
    for shared in (True, False):
        found = ordering.ranks_of(values, shared, built, 0, buffers.get)
        assert torch.equal(found.view(3, columns), row_ranks(values, shared=shared))


def test_what_little_tells_apart_is_left_to_the_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ranks(values: Tensor, *, shared: bool) -> Tensor:
        asked.append(len(values))
        return row_ranks(values, shared=shared)

    monkeypatch.setattr(ordering, "row_ranks", ranks)
    ordering.ranks_of(crowded(3, 5632), True, Compiler().build(ordering.ORDERING), 0, Buffers().get)
    assert asked == [2]
