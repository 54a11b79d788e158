"""Memory that threads hand to each other, and the one rounding at the end."""

import subprocess
import sys
from pathlib import Path

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


LARGE = """
from pathlib import Path
import torch
from merge.planning.sizing import MOST_BLOCK_ELEMENTS
from merge.running.blocks import kept_memory

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

with kept_memory(MOST_BLOCK_ELEMENTS + 1):
    with kept_memory(MOST_BLOCK_ELEMENTS):
        pass  # a stage that is made on the way
    before = held()
    large = [torch.ones(12 << 20, dtype=torch.uint8) for _ in range(4)]
    most = held() - before
    large.clear()
    print(most, held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux")
def test_large_temporaries_are_given_back_at_once() -> None:
    """Of long rows and whole tensors: pieces that are kept do not fit the next ones."""
    told = subprocess.run([sys.executable, "-c", LARGE], check=True, capture_output=True, text=True).stdout
    most, left = map(int, told.split())
    assert most > 40 << 20 and left < 8 << 20
