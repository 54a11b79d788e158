import numpy as np
import pytest
import torch

from tests.merge.methods.spectral.plain import LARGE, SHAPES, arrays, close, deltas_of, merged, parts


def test_worked_example_of_the_card() -> None:
    assert close(merged("iso_c", [torch.diag(torch.tensor([2.0, 1.0]))]), 1.5 * torch.eye(2), 1e-7)


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_agrees_with_an_independent_float64_reference(shape: tuple[int, int], count: int) -> None:
    deltas = deltas_of(count, shape)
    left, values, right = parts(np.sum(arrays(deltas), axis=0))
    assert close(merged("iso_c", deltas, scale=1.5), 1.5 * values.mean() * left @ right.T)


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
def test_all_singular_values_are_equal_and_the_nuclear_norm_stays(shape: tuple[int, int]) -> None:
    deltas = deltas_of(3, shape)
    before = torch.linalg.svdvals(sum(deltas[1:], deltas[0]))
    after = torch.linalg.svdvals(merged("iso_c", deltas))
    assert float(after.max() - after.min()) < 1e-8 * float(after.max())
    assert float(after.sum()) == pytest.approx(float(before.sum()), rel=1e-10)


@pytest.mark.parametrize("shape", [(12, 31), (300, 260)], ids=str)
def test_directions_that_nobody_has_are_not_raised(shape: tuple[int, int]) -> None:
    """The published code gives the mean to all min(m, n) directions, arbitrary ones among them."""
    deltas = deltas_of(2, shape, rank=2)
    values = torch.linalg.svdvals(merged("iso_c", [*deltas, torch.zeros(shape).double()]))
    wanted = torch.linalg.svdvals(deltas[0] + deltas[1])[:4].sum() / 4
    assert torch.allclose(values[:4], wanted)
    assert float(values[4]) < 1e-9


def test_a_wide_spread_of_singular_values_is_followed_to_its_end() -> None:
    """Squared, the smallest would drown in rounding: then the matrix itself is decomposed."""
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(270, 270, generator=generator).double()).Q for _ in range(2))
    values = torch.logspace(0, -5.7, 270, dtype=torch.float64)
    found = merged("iso_c", [(left * values) @ right.T])
    assert close(found, values.mean() * left @ right.T, 1e-9)


def test_copies_and_weights_count_in_the_sum() -> None:
    (delta,) = deltas_of(1, (5, 9))
    once = merged("iso_c", [delta])
    assert close(merged("iso_c", [delta] * 4), 4 * once)
    assert close(merged("iso_c", [delta, delta], weights=[3.0, -1.0]), 2 * once)


def test_what_cancels_leaves_the_base() -> None:
    (delta,) = deltas_of(1, (5, 9))
    assert not bool(merged("iso_c", [delta, -delta]).any())


def test_a_higher_limit_leaves_weak_directions_out() -> None:
    delta = torch.diag(torch.tensor([4.0, 2.0, 0.1]).double())
    found = torch.linalg.svdvals(merged("iso_c", [delta], null=0.1))
    assert found.tolist() == pytest.approx([3.0, 3.0, 0.0])
