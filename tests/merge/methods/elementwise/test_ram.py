import numpy as np
import pytest
import torch

from tests.merge.whole import merge_one

DELTAS = [torch.tensor([1.0, 2.0, 0.0, 0.5]), torch.tensor([3.0, 0.0, 0.0, 0.25])]


def ram(deltas: list[torch.Tensor], weights: list[float] | None = None, **settings: object) -> torch.Tensor:
    return merge_one([("ram", settings)], torch.zeros_like(deltas[0]), deltas, weights=weights)


def test_worked_example() -> None:
    assert ram(DELTAS).tolist() == [2.0, 2.0, 0.0, 0.375]


def test_small_changes_do_not_count_and_are_dropped() -> None:
    assert ram(DELTAS, epsilon=0.3).tolist() == [2.0, 2.0, 0.0, 0.5]
    assert ram(DELTAS, epsilon=0.25).tolist() == [2.0, 2.0, 0.0, 0.5], "the bound itself is no change"
    assert ram(DELTAS, epsilon=9.0).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_epsilon_zero_counts_denormals() -> None:
    made = ram([torch.tensor([2e-45, 1.0]), torch.tensor([0.0, 3.0])], epsilon=0.0)
    assert float(made[0]) > 0
    assert float(made[1]) == 2.0


def test_weights_multiply_task_vectors() -> None:
    assert ram(DELTAS, [1.0, 0.5]).tolist() == [1.25, 2.0, 0.0, 0.3125]


def test_one_source_is_taken_whole() -> None:
    assert torch.equal(ram([DELTAS[0]]), DELTAS[0])


def test_disjoint_sources_are_added_and_copies_are_averaged() -> None:
    parts = [torch.eye(8)[place] for place in range(8)]
    assert torch.equal(ram(parts), torch.ones(8))
    assert torch.equal(ram([DELTAS[0]] * 8), DELTAS[0])


def test_scale_zero_gives_the_base() -> None:
    base = torch.randn(30)
    assert torch.equal(merge_one([("ram", {"scale": 0.0})], base, [torch.randn(30)]), base)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_agrees_with_an_independent_float64_reference(count: int) -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(21, 17, generator=generator)
    sources = [base + 0.1 * torch.randn(21, 17, generator=generator) for _ in range(count)]
    weights = [1.0, 0.5, 2.0, 1.0, 1.0, 0.25, 1.0, -1.0][:count]
    merged = merge_one([("ram", {"epsilon": 0.08, "scale": 0.7})], base, sources, weights=weights)
    deltas = np.stack([(source - base).double().numpy() for source in sources])
    changed = np.abs(deltas) > 0.08
    wanted = base.double().numpy().copy()
    for place in np.ndindex(wanted.shape):
        moved = [w * d[place] for w, d, c in zip(weights, deltas, changed, strict=True) if c[place]]
        wanted[place] += 0.7 * (sum(moved) / len(moved) if moved else 0.0)
    assert np.abs(merged.numpy() - wanted).max() < 1e-5
