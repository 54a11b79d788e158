import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.merge.whole import merge_one

FIRST, SECOND = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([1.0, -1.0, 3.0])


def sce(deltas: list[torch.Tensor], base: torch.Tensor | None = None, **settings: object) -> torch.Tensor:
    start = torch.zeros_like(deltas[0]) if base is None else base
    return merge_one([("sce", settings)], start, [start + delta for delta in deltas])


def test_worked_examples_of_the_card() -> None:
    assert torch.allclose(sce([FIRST, SECOND], density=0.5), torch.tensor([0.0, 0.0, 3.0]))
    assert torch.allclose(sce([FIRST, SECOND]), torch.tensor([1.0, 2.0, 3.0]))


def test_shares_are_mean_squares_of_what_is_selected() -> None:
    """Of the three entries that vary the last two are selected: squares 4 and 16 + 25."""
    made = sce([torch.tensor([8.0, 1.0, 2.0, 0.0]), torch.tensor([8.0, 2.0, 4.0, 5.0])], density=0.9)
    assert torch.allclose(made, torch.tensor([0.0, 0.0, (4 * 2 + 41 * 4) / 45, 5.0]))


def test_one_source_is_taken_whole() -> None:
    delta = torch.randn(100)
    assert torch.allclose(sce([delta], density=0.3), delta)
    assert torch.allclose(sce([delta, delta, delta], density=0.3), delta), "copies do not vary either"


def test_all_that_equal_the_least_selected_are_selected() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(5)
    assert torch.allclose(sce([signs * 3, signs], density=0.1), signs * 2.8)


def test_the_minority_is_erased() -> None:
    deltas = [torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([-4.0])]
    assert float(sce(deltas)) == pytest.approx((9 * 3 + 4 * 2) / 13)


def test_an_even_vote_leaves_the_base_unless_told_otherwise() -> None:
    deltas = [torch.tensor([2.0, 1.0]), torch.tensor([-2.0, 1.0])]
    assert sce(deltas).tolist() == [0.0, 1.0]
    assert sce(deltas, on_tie="plus").tolist() == [2.0, 1.0]


def test_small_changes_still_have_shares_unless_mergekits_floor_is_asked_for() -> None:
    deltas = [torch.tensor([3e-4, 0.0]), torch.tensor([1e-4, 1e-9])]
    assert float(sce(deltas)[0]) == pytest.approx(2.8e-4, rel=1e-5)
    assert float(sce(deltas, equal_below=1e-6)[0]) == pytest.approx(2e-4, rel=1e-5)


def test_that_floor_is_for_the_mean_squares_of_all_sources_together() -> None:
    deltas = [torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])]
    assert float(sce(deltas, equal_below=5.0)[0]) == pytest.approx(2.8)
    assert float(sce(deltas, equal_below=5.1)[0]) == pytest.approx(2.0)


def test_a_negative_weight_takes_away_and_counts_as_much() -> None:
    deltas = [torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])]
    made = merge_one([("sce", {})], torch.zeros(2), deltas, weights=[1.0, -1.0])
    assert made.tolist() == [pytest.approx((9 * 3 - 2 * 1) / 11), -1.0]


def test_weights_multiply_shares() -> None:
    steps, base = [("sce", {})], torch.zeros(1)
    sources = [torch.tensor([3.0]), torch.tensor([1.0])]
    merged = merge_one(steps, base, sources, weights=[1.0, 9.0])
    assert float(merged) == pytest.approx((9 * 3 + 9 * 1) / 18)


def test_zero_changes_and_a_zero_source_do_no_harm() -> None:
    base = torch.randn(7)
    assert torch.equal(sce([torch.zeros(7)] * 3, base, density=0.5), base)
    assert torch.allclose(sce([torch.ones(7), torch.zeros(7)], base), base + 1)


def test_scale_zero_gives_the_base() -> None:
    base = torch.randn(50)
    assert torch.equal(sce([torch.randn(50) for _ in range(3)], base, scale=0.0), base)


def test_tensors_of_one_entry_and_denormals_work() -> None:
    assert sce([torch.tensor([2.0]), torch.tensor([1.0])], density=0.01).tolist() == [pytest.approx(1.8)]
    tiny = [torch.tensor([1e-45, 0.0]), torch.tensor([3e-45, 1e-45])]
    assert bool(torch.isfinite(sce(tiny, density=0.5)).all())


def reference(deltas: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """From the three steps of the paper, with a full sort."""
    if share < 1:
        variance = deltas.var(axis=0)
        keep = int(np.count_nonzero(variance) * share)
        least = np.sort(variance.reshape(-1))[::-1][keep - 1]
        deltas = deltas * (variance >= least)
    squares = (deltas**2).mean(axis=tuple(range(1, deltas.ndim)))
    agrees = (np.sign(deltas) == np.sign(deltas.sum(axis=0))) & (deltas != 0)
    shares = (squares / squares.sum()).reshape(-1, *[1] * (deltas.ndim - 1)) * agrees
    return (shares * deltas).sum(axis=0) / np.where(shares.sum(axis=0), shares.sum(axis=0), 1)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("density", [0.1, 0.55, 1.0])
def test_agrees_with_an_independent_float64_reference(count: int, density: float) -> None:
    generator = torch.Generator().manual_seed(9)
    base = torch.randn(19, 33, generator=generator)
    sources = [base + 0.1 * torch.randn(19, 33, generator=generator) for _ in range(count)]
    merged = merge_one([("sce", {"density": density, "scale": 0.5})], base, sources)
    deltas = torch.stack([source - base for source in sources]).double().numpy()
    wanted = base.double().numpy() + 0.5 * reference(deltas, density)
    assert np.abs(merged.numpy() - wanted).max() < 1e-5
