"""A sample tells where to look; what is counted there proves the value, or that the sample was wrong."""

import torch
from torch import Tensor

from merge.running.fused.windows import Bits, Tally, Window, found_in, joined, window_of


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
