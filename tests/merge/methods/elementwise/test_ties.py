import numpy as np
import pytest
import torch

from tests.merge import reference
from tests.merge.whole import merge_all, merge_one

DELTAS = torch.tensor([[0.5, -0.1, 0.3, -0.4], [-0.2, 0.6, 0.2, -0.1], [0.4, 0.1, -0.5, 0.05]])
BASE = torch.zeros(4)


def ties(
    deltas: torch.Tensor, base: torch.Tensor = BASE, weights: list[float] | None = None, **settings: object
):
    return merge_one([("ties", settings)], base, [base + delta for delta in deltas], weights=weights)


def test_worked_example_of_the_card_mean() -> None:
    assert torch.allclose(ties(DELTAS, density=0.5), torch.tensor([0.45, 0.6, -0.5, -0.4]))


def test_worked_example_of_the_card_sum() -> None:
    merged = ties(DELTAS, density=0.5, normalize=False)
    assert torch.allclose(merged, torch.tensor([0.9, 0.6, -0.5, -0.4]))


def test_max_takes_the_largest_that_agrees() -> None:
    merged = ties(DELTAS, density=0.5, aggregate="max")
    assert torch.allclose(merged, torch.tensor([0.5, 0.6, -0.5, -0.4]))


def test_all_entries_equal_to_the_threshold_are_kept() -> None:
    deltas = torch.tensor([[0.25, -0.25, 0.25, 0.125]])
    assert torch.equal(ties(deltas, density=0.25), torch.tensor([0.25, -0.25, 0.25, 0.0]))


def test_at_least_one_entry_is_kept() -> None:
    assert torch.equal(
        ties(torch.tensor([[0.5, 0.25, 0.125, 0.0]]), density=0.01), torch.tensor([0.5, 0, 0, 0])
    )


def test_density_means_its_decimal_and_not_its_binary_neighbour() -> None:
    deltas = torch.arange(1.0, 101.0).view(1, -1)
    assert int((ties(deltas, torch.zeros(100), density=0.29) != 0).sum()) == 29


def test_weights_vote_and_divide() -> None:
    deltas = torch.tensor([[1.0], [-3.0]])
    assert float(ties(deltas, torch.zeros(1), weights=[4.0, 1.0], density=1.0)) == 1.0
    assert float(ties(deltas, torch.zeros(1), weights=[4.0, 1.0], density=1.0, elect="sum")) == -3.0


def test_an_even_vote_leaves_the_base_unless_told_otherwise() -> None:
    deltas = torch.tensor([[2.0], [-2.0]])
    assert float(ties(deltas, torch.ones(1), density=1.0)) == 1.0
    assert float(ties(deltas, torch.ones(1), density=1.0, on_tie="plus")) == 3.0


def test_each_source_may_have_its_own_density() -> None:
    deltas = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    merged = ties(deltas, density=(0.25, 1.0), normalize=False)
    assert torch.equal(merged, torch.tensor([8.0, 3.0, 2.0, 1.0]))


def test_one_source_at_full_density_is_given_back() -> None:
    base, source = torch.randn(1000), torch.randn(1000)
    assert torch.allclose(merge_one([("ties", {"density": 1.0})], base, [source]), source, atol=1e-6)


def test_scale_zero_gives_the_base() -> None:
    base = torch.randn(1000)
    assert torch.equal(ties(torch.randn(3, 1000), base, scale=0.0), base)


def test_global_scope_ranks_over_all_tensors() -> None:
    tensors = {
        "big": (torch.zeros(4), [torch.tensor([9.0, 8.0, 7.0, 1.0])]),
        "small": (torch.zeros(4), [torch.tensor([2.0, 0.5, 0.25, 0.1])]),
    }
    merged = merge_all([("ties", {"density": 0.5, "scope": "global"})], tensors)
    assert torch.equal(merged["big"], torch.tensor([9.0, 8.0, 7.0, 0.0]))
    assert torch.equal(merged["small"], torch.tensor([2.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("density", [0.1, 0.35, 1.0])
def test_agrees_with_an_independent_float64_reference(density: float) -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(37, 53, generator=generator)
    sources = [base + 0.1 * torch.randn(37, 53, generator=generator) for _ in range(3)]
    weights = [1.0, 0.5, 2.0]
    merged = merge_one([("ties", {"density": density, "scale": 0.7})], base, sources, weights=weights)
    wide = [tensor.double().numpy() for tensor in (base, *sources)]
    wanted = reference.ties(wide[0], wide[1:], weights, density, scale=0.7)
    assert np.abs(merged.numpy() - wanted).max() < 1e-5
