"""Memory that threads hand to each other, and the one rounding at the end."""

import numpy as np
import pytest
import torch

from merge.running.blocks import Buffers, Rooms, cast_out


def test_memory_is_lent_again_where_it_suffices() -> None:
    rooms = Rooms()
    first = rooms.take(1000)
    assert first.numel() >= 1000
    rooms.give(first)
    assert rooms.take(900).data_ptr() == first.data_ptr()
    rooms.give(first)
    assert rooms.take(5000).numel() >= 5000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float64_is_rounded_to_16_bits_once(dtype: torch.dtype) -> None:
    """By way of float32, what lies a hair beside the middle of two neighbours falls on the middle."""
    step, sizes = torch.finfo(dtype).eps, torch.tensor([1.0, -1.0, 2.0**-3, 2.0**9]).double()
    middles = (1 + step * (torch.arange(64) + 0.5).double()).outer(sizes)
    half = (step / 2 * sizes.abs()).expand_as(middles)
    for away in (1, -1):
        numbers = middles + away * 1e-6 * half
        found = cast_out("w", numbers, dtype, Buffers()).double().view_as(numbers)
        assert torch.equal(found, middles + away * half)
    drawn = torch.randn(1 << 12).double() * torch.logspace(-9, 3, 1 << 12).double()
    if dtype == torch.float16:  # numpy rounds these once
        wanted = torch.from_numpy(drawn.numpy().astype(np.float16))
        assert torch.equal(cast_out("w", drawn, dtype, Buffers()), wanted)
