import numpy as np
import pytest
import torch

from merge.errors import SettingInvalid
from tests.merge.whole import merge_one

TEN = torch.tensor([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9, -1.0])


def breadcrumbs(delta: torch.Tensor = TEN, **settings: object) -> torch.Tensor:
    return merge_one([("breadcrumbs", settings), ("task_arithmetic", {})], torch.zeros_like(delta), [delta])


def kept(delta: torch.Tensor = TEN, **settings: object) -> list[int]:
    """The places that are kept."""
    return breadcrumbs(delta, **settings).nonzero().view(-1).tolist()


def test_worked_example() -> None:
    assert kept(density=0.5, gamma=0.2) == [3, 4, 5, 6, 7]
    assert torch.equal(breadcrumbs(density=0.5, gamma=0.2)[3:8], TEN[3:8])


def test_small_tensors_are_not_wiped_out() -> None:
    """A share gamma of ten entries that is less than one entry drops none at the top."""
    assert kept(density=0.5, gamma=0.01) == [5, 6, 7, 8, 9]
    assert breadcrumbs(torch.tensor([0.25]), density=0.5, gamma=0.4).tolist() == [0.25]


def test_without_gamma_it_is_a_trim() -> None:
    delta = torch.randn(3000)
    trimmed = merge_one([("trim", {"density": 0.3}), ("task_arithmetic", {})], torch.zeros(3000), [delta])
    assert torch.equal(breadcrumbs(delta, density=0.3, gamma=0.0), trimmed)


def test_density_one_drops_nothing() -> None:
    delta = torch.randn(500)
    assert torch.equal(breadcrumbs(delta, density=1.0), delta)
    assert torch.equal(breadcrumbs(delta, density=1.0, gamma=0.3), delta)


def test_shares_that_do_not_fit_are_refused_and_say_how_much() -> None:
    with pytest.raises(
        SettingInvalid, match=r"density \+ gamma must be at most 1, but density is 0\.9 and gamma"
    ):
        breadcrumbs(density=0.9, gamma=0.2)
    assert len(kept(density=0.8, gamma=0.2)) == 8


def test_gamma_gives_way_where_that_is_asked_for() -> None:
    """All but the two smallest fit beside the eight that stay, so two of the wanted five are dropped."""
    assert kept(density=0.8, gamma=0.5, overlap="shrink_gamma") == list(range(8))


def test_equal_magnitudes_are_all_kept() -> None:
    assert len(kept(torch.full((20,), -0.5), density=0.1, gamma=0.2)) == 20
    tied = torch.tensor([4.0, 3.0, 3.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    assert kept(tied, density=0.2, gamma=0.2) == [1, 2, 3], "ranks 3 and 4 are both 3.0"


def test_zeros_and_denormals_do_no_harm() -> None:
    for rescale in ("none", "l1", "l2"):
        assert torch.equal(breadcrumbs(torch.zeros(6), rescale=rescale), torch.zeros(6))
    assert kept(torch.tensor([4e-45, 3e-45, 1e-45, 0.0]), density=0.25, gamma=0.25) == [1]


@pytest.mark.parametrize(("rescale", "power"), [("l1", 1), ("l2", 2)])
def test_norms_are_restored_when_asked(rescale: str, power: int) -> None:
    delta = torch.randn(5000)
    made = breadcrumbs(delta, density=0.6, gamma=0.1, rescale=rescale)
    assert float(made.norm(power)) == pytest.approx(float(delta.norm(power)), rel=1e-5)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.29, 0.13)])
def test_agrees_with_an_independent_float64_reference(count: int, density: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(23, 41, generator=generator)
    sources = [base + 0.1 * torch.randn(23, 41, generator=generator) for _ in range(count)]
    merged = merge_one(
        [("breadcrumbs", {"density": density, "gamma": gamma}), ("task_arithmetic", {})], base, sources
    )
    wanted = base.double().numpy().reshape(-1)
    for source in sources:
        delta = (source - base).double().numpy().reshape(-1)
        order = np.argsort(-np.abs(delta))
        top, keep = int(gamma * delta.size), int(density * delta.size)
        mask = np.zeros(delta.size)
        mask[order[top : top + keep]] = 1
        wanted = wanted + mask * delta
    assert np.abs(merged.numpy().reshape(-1) - wanted).max() < 1e-5


def test_each_source_has_its_own_shares() -> None:
    steps = [("breadcrumbs", {"density": (0.5, 0.2), "gamma": (0.2, 0.0)}), ("task_arithmetic", {})]
    merged = merge_one(steps, torch.zeros(10), [TEN, TEN])
    assert merged.nonzero().view(-1).tolist() == [3, 4, 5, 6, 7, 8, 9]
