import numpy as np
import pytest
import torch

from tests.merge.whole import merge_all, merge_one

FIRST, SECOND = torch.tensor([1.0, 2.0, 4.0, 0.0, 0.0]), torch.tensor([3.0, 0.0, 0.0, 1.0, 0.0])


def ramplus(
    deltas: list[torch.Tensor], weights: list[float] | None = None, **settings: object
) -> torch.Tensor:
    return merge_one([("ramplus_tl", settings)], torch.zeros_like(deltas[0]), deltas, weights=weights)


def test_worked_example() -> None:
    """One entry is shared; the first source has two of its own (rho 1/2), the second one (rho 1)."""
    made = ramplus([FIRST, SECOND], r=1.0, alpha=0.75)
    assert made.tolist() == [2.0, 3.0, 6.0, 1.75, 0.0]


def test_alpha_bounds_the_overlap_and_r_its_effect() -> None:
    assert torch.allclose(ramplus([FIRST, SECOND]), torch.tensor([2.0, 2.04, 4.08, 1.02, 0.0]))


def test_without_r_or_alpha_it_is_ram() -> None:
    base, sources = torch.randn(40, 9), [torch.randn(40, 9) * (torch.rand(40, 9) < 0.4) for _ in range(4)]
    sources = [base + source for source in sources]
    plain = merge_one([("ram", {})], base, sources)
    for settings in ({"r": 0.0}, {"alpha": 0.0}):
        assert torch.equal(merge_one([("ramplus_tl", settings)], base, sources), plain)


def test_one_source_is_taken_whole_and_disjoint_ones_are_added() -> None:
    assert torch.equal(ramplus([FIRST]), FIRST)
    assert torch.equal(ramplus([torch.eye(8)[place] for place in range(8)], r=1.0), torch.ones(8))


def test_sources_that_share_everything_are_averaged() -> None:
    assert torch.equal(ramplus([FIRST, FIRST * 3], r=1.0), FIRST * 2)


def test_global_scope_counts_over_the_whole_model() -> None:
    """Over both tensors each source shares one entry and has two (then one) of its own."""
    tensors = {
        "shared": (torch.zeros(1), [torch.tensor([1.0]), torch.tensor([3.0])]),
        "own": (torch.zeros(3), [torch.tensor([2.0, 4.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])]),
    }
    settings = {"r": 1.0, "alpha": 5.0}
    merged = merge_all([("ramplus_tl", {**settings, "scope": "global"})], tensors)
    assert (merged["shared"].tolist(), merged["own"].tolist()) == ([2.0], [3.0, 6.0, 2.0])
    local = merge_all([("ramplus_tl", settings)], tensors)
    assert local["own"].tolist() == [2.0, 4.0, 1.0]


def test_weights_multiply_task_vectors() -> None:
    made = ramplus([FIRST, SECOND], [1.0, 0.5], r=1.0, alpha=0.75)
    assert made.tolist() == [1.25, 3.0, 6.0, 0.875, 0.0]


def test_zero_changes_do_no_harm() -> None:
    base = torch.randn(9)
    assert torch.equal(merge_one([("ramplus_tl", {})], base, [base, base]), base)


@pytest.mark.parametrize("count", [2, 8])
def test_agrees_with_an_independent_float64_reference(count: int) -> None:
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(13, 29, generator=generator)
    sources = [base + 0.1 * torch.randn(13, 29, generator=generator) for _ in range(count)]
    settings = {"epsilon": 0.15, "r": 0.8, "alpha": 1.5, "scale": 0.5}
    merged = merge_one([("ramplus_tl", settings)], base, sources)
    deltas = np.stack([(source - base).double().numpy() for source in sources])
    changed = np.abs(deltas) > 0.15
    count_of = changed.sum(axis=0)
    wanted = base.double().numpy().copy()
    for delta, mine in zip(deltas, changed, strict=True):
        shared, unique = (mine & (count_of > 1)).sum(), (mine & (count_of == 1)).sum()
        loud = 1 + 0.8 * min(shared / unique, 1.5)
        wanted += 0.5 * np.where(mine & (count_of == 1), loud * delta, 0)
        wanted += 0.5 * np.where(mine & (count_of > 1), delta / np.maximum(count_of, 1), 0)
    assert np.abs(merged.numpy() - wanted).max() < 1e-5
