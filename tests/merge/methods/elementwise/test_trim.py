import numpy as np
import pytest
import torch

from tests.merge.whole import merge_all, merge_one

DELTA = torch.tensor([0.5, -0.125, 0.25, -1.0])


def trim(delta: torch.Tensor = DELTA, **settings: object) -> torch.Tensor:
    return merge_one([("trim", settings), ("task_arithmetic", {})], torch.zeros_like(delta), [delta])


def test_worked_example() -> None:
    assert trim(density=0.5).tolist() == [0.5, 0.0, 0.0, -1.0]


def test_norms_are_restored_by_hand() -> None:
    """|d|_1 is 1.875 before and 1.5 after the trim; |d|_2^2 is 1.328125 before and 1.25 after."""
    assert trim(density=0.5, rescale="l1").tolist() == [0.625, 0.0, 0.0, -1.25]
    assert float(trim(density=0.5, rescale="l2")[3]) == pytest.approx(-((1.328125 / 1.25) ** 0.5), rel=1e-6)


def test_all_that_equal_the_least_kept_are_kept() -> None:
    assert torch.equal(trim(torch.full((9,), -0.5), density=0.01), torch.full((9,), -0.5))


def test_at_least_one_entry_is_kept() -> None:
    assert trim(density=0.001).tolist() == [0.0, 0.0, 0.0, -1.0]
    assert trim(torch.tensor([0.25]), density=0.1).tolist() == [0.25]


def test_density_one_changes_nothing() -> None:
    delta = torch.randn(1000)
    assert torch.equal(trim(delta, density=1.0), delta)


def test_nothing_changed_stays_nothing() -> None:
    for rescale in ("none", "l1", "l2"):
        assert torch.equal(trim(torch.zeros(6), density=0.5, rescale=rescale), torch.zeros(6))


def test_denormal_changes_are_ranked_too() -> None:
    assert trim(torch.tensor([3e-45, -1e-45, 0.0]), density=0.34)[1:].tolist() == [0.0, 0.0]
    assert float(trim(torch.tensor([3e-45, -1e-45, 0.0]), density=0.34)[0]) > 0


def test_global_scope_ranks_over_all_tensors() -> None:
    tensors = {
        "big": (torch.zeros(3), [torch.tensor([9.0, 8.0, 1.0])]),
        "small": (torch.zeros(3), [torch.tensor([2.0, 0.5, 0.25])]),
    }
    merged = merge_all([("trim", {"density": 0.5, "scope": "global"}), ("task_arithmetic", {})], tensors)
    assert merged["big"].tolist() == [9.0, 8.0, 0.0]
    assert merged["small"].tolist() == [2.0, 0.0, 0.0]


def test_global_norms_are_still_restored_tensor_by_tensor() -> None:
    steps = [("trim", {"density": 0.5, "scope": "global", "rescale": "l1"}), ("task_arithmetic", {})]
    tensors = {
        name: (torch.zeros(2), [torch.tensor(d)]) for name, d in (("a", [3.0, 1.0]), ("b", [2.0, 0.0]))
    }
    merged = merge_all(steps, tensors)
    assert (merged["a"].tolist(), merged["b"].tolist()) == ([4.0, 0.0], [2.0, 0.0])


def test_each_source_has_its_own_density() -> None:
    deltas = [DELTA, DELTA]
    steps = [("trim", {"density": (0.25, 0.5)}), ("task_arithmetic", {})]
    assert merge_one(steps, torch.zeros(4), deltas).tolist() == [0.5, 0.0, 0.0, -2.0]


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("density", [0.07, 0.5])
def test_agrees_with_an_independent_float64_reference(count: int, density: float) -> None:
    generator = torch.Generator().manual_seed(11)
    base = torch.randn(31, 47, generator=generator)
    sources = [base + 0.1 * torch.randn(31, 47, generator=generator) for _ in range(count)]
    merged = merge_one(
        [("trim", {"density": density, "rescale": "l2"}), ("task_arithmetic", {"scale": 0.3})], base, sources
    )
    wanted = base.double().numpy()
    for source in sources:
        delta = (source - base).double().numpy()
        order = np.argsort(-np.abs(delta), axis=None)[: int(density * delta.size)]
        kept = np.zeros(delta.size)
        kept[order] = delta.reshape(-1)[order]
        wanted = wanted + 0.3 * (kept * np.linalg.norm(delta) / np.linalg.norm(kept)).reshape(delta.shape)
    assert np.abs(merged.numpy() - wanted).max() < 1e-5


def test_before_ties_at_density_one_it_is_ties() -> None:
    base, sources = torch.randn(40, 30), [torch.randn(40, 30) for _ in range(3)]
    chain = merge_one([("trim", {"density": 0.3}), ("ties", {"density": 1.0})], base, sources)
    assert torch.equal(chain, merge_one([("ties", {"density": 0.3})], base, sources))
