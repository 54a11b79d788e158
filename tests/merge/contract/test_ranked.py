from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.contract.ranked import Count, Ranked
from merge.planning.sizing import PIECE_ELEMENTS
from tests.merge.contract.rounds import measured


def at(*ranks: int, **more: Any) -> Ranked:
    return Ranked(lambda: (), lambda p, entries: ranks, **more)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    data=st.data(),
)
def test_values_at_ranks_are_those_of_a_full_sort(values: list[float], data: Any) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    ranks = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=4))
    ordered = tensor.abs().sort(descending=True).values
    assert measured(at(*ranks), [tensor]) == (tuple(float(ordered[rank - 1]) for rank in ranks),)


def test_values_do_not_depend_on_the_cut() -> None:
    tensors = [torch.randn(4 * PIECE_ELEMENTS + 9) for _ in range(2)]
    stat = at(1, 100, 200_000)
    assert measured(stat, tensors) == measured(stat, tensors, None, (1, 3))
    assert measured(stat, tensors)[1][2] == float(tensors[1].abs().sort(descending=True).values[199_999])


def test_ranks_beyond_the_ends_are_the_ends() -> None:
    assert measured(at(0, 99), [torch.tensor([2.0, -3.0, 1.0])]) == ((3.0, 1.0),)


def test_zeros_may_be_left_out_of_the_ranking() -> None:
    tensor = torch.tensor([0.0, -0.0, 5.0, 1e-45, -2.0])
    half = Ranked(lambda: (), lambda p, entries: (entries // 2, entries), nonzero=True)
    (found,) = measured(half, [tensor])
    assert found == (5.0, pytest.approx(1.4e-45))
    assert measured(half, [torch.zeros(4)]) == ((0.0, 0.0),)


def test_ranks_may_depend_on_settings_and_some_settings_need_none() -> None:
    stat = Ranked(lambda: (), lambda p, entries: (p,), idle=lambda p: p == 3)
    assert measured(stat, [torch.tensor([1.0, 2.0, 4.0])], 2) == ((2.0,),)
    assert (stat.needed(2), stat.needed(3)) == (True, False)


def test_counts_are_exact_and_add_up() -> None:
    tensor = torch.randn(3 * PIECE_ELEMENTS)
    found = measured(Count(lambda: ()), [tensor > 0, tensor, torch.zeros_like(tensor)], None, (1, 2))
    assert found == (int((tensor > 0).sum()), int((tensor != 0).sum()), 0)
