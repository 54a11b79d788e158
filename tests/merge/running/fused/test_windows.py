"""A sample tells where to look; what is counted there proves the value, or that the sample was wrong."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.running.blocks import Buffers
from merge.running.fused.loops import Loops
from merge.running.fused.source import BLOCK
from merge.running.fused.windows import LOTS, Bits, Tally, Window, found_in, joined, window_of
from tests.merge.running.fused.stand_ins import F32, Memory, chain_of, entries, output_of


def as_bits(values: Tensor) -> Bits:
    return values.contiguous().view(torch.int32).numpy().copy()


def test_a_wrong_guess_is_noticed() -> None:
    low, high = as_bits(torch.tensor([2.0, 5.0])).tolist()
    window, tally = Window(low, high, 0.5), Tally()
    for values in ([9.0, -5.0, 4.0, 2.0], [-3.0, 8.0, 5.0, 1.0, 0.0, -2.0, 3.5]):
        tally.add(*found_in(torch.tensor(values), window))
    found = [tally.value(window, rank) for rank in range(1, 12)]
    assert found == [None, None, 5.0, 5.0, 4.0, 3.5, 3.0, 2.0, 2.0, None, None]
    assert tally.value(window, 0) == 0.0, "nothing is ranked"


def test_a_window_holds_the_wanted_rank_and_little_else() -> None:
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(5)).abs()
    ordered = as_bits(values.sort(descending=True).values)
    for rank in (1, 90, 100_000, 500_000, 999_950, 1_000_000):
        window = window_of(as_bits(values[::16]), rank, 1_000_000)
        assert window is not None
        assert window.low <= ordered[rank - 1] <= window.high
        inside = int(((ordered > window.low) & (ordered < window.high)).sum())
        assert inside / 1_000_000 < 1.5 * window.share + 1e-4 < 0.05
    assert window_of(as_bits(values[:100]), 500_000, 1_000_000) is None, "too wide to be of use"


def test_a_window_is_crowded_where_many_entries_are_equal_to_an_end() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(5)).abs()
    for each, crowded in ((values, False), (values.round(), True)):
        window = window_of(as_bits(each), 500, 100_000)
        assert window is not None
        assert window.crowded == crowded
    zeros = values * (torch.arange(100_000) % 50 > 0)
    window = window_of(as_bits(zeros), 99_990, 100_000)
    assert window is not None
    assert (window.low, window.high, window.crowded) == (0, 0, True)


def test_a_window_within_another_needs_no_counters_of_its_own() -> None:
    wide, narrow, apart = Window(10, 90, 0.1), Window(20, 90, 0.1), Window(5, 50, 0.1)
    assert joined([narrow, wide, apart]) == [wide, wide, apart]


def test_a_sample_of_what_is_made_in_memory_stays_within_its_room(
    small_jobs_too: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lots of tensors that are quantised, or have adapters, grow with them, beyond the loops' blocks."""
    shape, size = (64, BLOCK), 2 * LOTS * BLOCK
    stored = entries(shape, [F32, F32])
    chain, output = chain_of([("ties", {})], shape, 1), output_of(shape, stored, True, "F32")
    memory = Memory(stored)
    memory.in_files = False
    loops = Loops(memory, Buffers(), chain.entries, True)  # type: ignore[arg-type]
    rooms: list[Tensor] = []

    def scratch(loop: Any) -> Tensor:
        rooms.append(torch.full((4 * loop.scratch_bytes,), 7, dtype=torch.uint8))
        return rooms[-1]

    monkeypatch.setattr(loops, "scratch", scratch)
    found = loops.sampled(chain, output, chain.tasks, size, BLOCK)
    assert found is not None
    assert len(rooms) == LOTS
    assert all(bool((room[len(room) // 4 :] == 7).all()) for room in rooms)
    change, lot = (stored[1] - stored[0]).abs(), size // LOTS
    begins = (number * ((chain.entries - lot) // (LOTS - 1)) for number in range(LOTS))
    assert (found[0][0] == np.concatenate([as_bits(change[at : at + lot]) for at in begins])).all()
