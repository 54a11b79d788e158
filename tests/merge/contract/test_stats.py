import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.contract.params import knob, params
from merge.contract.stats import Gram, Norm, Sum, Threshold
from merge.kernels import radix
from merge.kernels.keyed import Draws, mix
from merge.kernels.reduce import piece_sums
from merge.planning.sizing import PIECE_ELEMENTS
from tests.merge.contract.rounds import measured


@params
class Density:
    density: float = knob(0.5, "Share.")


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50),
    density=st.sampled_from([0.01, 0.2, 0.3, 0.5, 0.7, 0.99]),
)
def test_threshold_is_that_of_a_full_sort(values: list[float], density: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    keep = max(1, int(round(density * 100) * len(values)) // 100)
    wanted = float(tensor.abs().sort(descending=True).values[keep - 1])
    assert measured(Threshold(), [tensor], Density(density)) == (wanted,)


def test_threshold_does_not_depend_on_the_cut() -> None:
    tensor = torch.randn(5 * PIECE_ELEMENTS + 17)
    whole = measured(Threshold(), [tensor], Density(0.3))
    assert measured(Threshold(), [tensor], Density(0.3), [1, 4]) == whole
    assert whole[0] == float(tensor.abs().kthvalue(tensor.numel() - int(0.3 * tensor.numel()) + 1).values)


def test_threshold_tells_denormals_and_extremes_apart() -> None:
    tensor = torch.tensor([1e-45, -3e-45, 3.4e38, -0.0])
    for share, wanted in ((0.25, tensor[2]), (0.5, -tensor[1]), (0.75, tensor[0])):
        assert measured(Threshold(), [tensor], Density(share)) == (float(wanted),)


def test_sums_are_the_same_bits_however_they_are_cut() -> None:
    tensor = torch.randn(6 * PIECE_ELEMENTS + 333) * 1e3
    whole = measured(Sum(lambda: ()), [tensor], None)
    assert measured(Sum(lambda: ()), [tensor], None, [1, 2, 5]) == whole
    assert whole[0] == pytest.approx(float(tensor.double().sum()), abs=1e-6)


def test_a_piece_does_not_know_its_neighbours() -> None:
    tensor = torch.randn(3 * PIECE_ELEMENTS)
    alone = [float(piece_sums(part, PIECE_ELEMENTS)[0]) for part in tensor.split(PIECE_ELEMENTS)]
    assert piece_sums(tensor, PIECE_ELEMENTS).tolist() == alone


def test_norm_and_gram_agree_with_float64() -> None:
    a, b, c = torch.randn(3, 100_000)
    wide = torch.stack([a, b, c]).double()
    gram = torch.tensor(measured(Gram(lambda: ()), [a, b, c], None), dtype=torch.float64)
    assert torch.allclose(gram, wide @ wide.T, rtol=1e-12)
    assert measured(Norm(lambda: ()), [a, b], None)[1] == pytest.approx(float(wide[1].norm()), rel=1e-12)


def test_counts_of_both_rounds_cover_what_they_should() -> None:
    tensor = torch.randn(10_000)
    high = radix.count_high(tensor)
    assert int(high.sum()) == 10_000
    busiest = int(high.argmax())
    assert int(radix.count_low(tensor, busiest).sum()) == int(high[busiest])


def test_draws_depend_on_key_and_index_alone() -> None:
    whole = Draws(7, 0, (1000,)).bits()
    assert torch.equal(Draws(7, 300, (10, 20)).bits().view(-1), whole[300:500])
    assert not torch.equal(Draws(8, 0, (1000,)).bits(), whole)
    assert not torch.equal(Draws(7, 0, (1000,)).bits(stream=1), whole)


def test_draws_go_on_past_four_billion_entries() -> None:
    edge = 1 << 32
    across = Draws(7, edge - 5, (10,)).bits()
    assert torch.equal(across[5:], Draws(7, edge, (5,)).bits())
    assert not torch.equal(across[5:], Draws(7, 0, (5,)).bits())


def test_one_keys_draws_are_not_anothers_shifted() -> None:
    here, there = torch.empty(2, 100, dtype=torch.int32)
    mix(here, 5, 1 << 32)
    mix(there, 0, (2 << 32) | 5)
    assert not bool((here == there).any())


def test_draws_are_uniform_and_uncorrelated() -> None:
    count = 1 << 20
    first, second = Draws(1, 0, (count,)).uniform(), Draws(2, 0, (count,)).uniform()
    cells = torch.bincount((first * 256).long(), minlength=256).double()
    chi_squared = float(((cells - count / 256) ** 2 / (count / 256)).sum())
    assert 150 < chi_squared < 380
    for other in (second, first.roll(1)):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.005
