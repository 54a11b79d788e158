import numpy as np
import pytest
import torch

from tests.merge.whole import merge_one


def magmax(
    deltas: list[torch.Tensor], weights: list[float] | None = None, **settings: object
) -> torch.Tensor:
    return merge_one([("magmax", settings)], torch.zeros_like(deltas[0]), deltas, weights=weights)


def test_worked_example() -> None:
    made = magmax([torch.tensor([2.0, -1.0, 0.5, 0.0]), torch.tensor([1.0, 3.0, -4.0, 0.0])])
    assert made.tolist() == [2.0, 3.0, -4.0, 0.0]


def test_opposite_changes_of_one_size_leave_the_base_whatever_their_order() -> None:
    deltas = [torch.tensor([2.0]), torch.tensor([-2.0]), torch.tensor([1.0])]
    assert magmax(deltas).tolist() == magmax(deltas[::-1]).tolist() == [0.0]


def test_weights_count_before_the_choice() -> None:
    assert magmax([torch.tensor([2.0]), torch.tensor([-3.0])], [2.0, 1.0]).tolist() == [4.0]
    assert magmax([torch.tensor([2.0])], [-1.0]).tolist() == [-2.0]


def test_one_source_and_copies_of_it_give_the_source() -> None:
    base, source = torch.zeros(50), torch.randn(50)
    for count in (1, 2, 8):
        assert torch.equal(merge_one([("magmax", {})], base, [source] * count), source)


def test_a_source_that_changed_nothing_and_scale_zero_do_no_harm() -> None:
    base, delta = torch.randn(50), torch.randn(50)
    assert torch.allclose(merge_one([("magmax", {})], base, [base, base + delta]), base + delta)
    assert torch.equal(merge_one([("magmax", {"scale": 0.0})], base, [base + delta]), base)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_agrees_with_an_independent_float64_reference(count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(13, 29, generator=generator)
    sources = [base + 0.1 * torch.randn(13, 29, generator=generator) for _ in range(count)]
    weights = [1.0 + place / 4 for place in range(count)]
    merged = merge_one([("magmax", {"scale": 0.5})], base, sources, weights=weights)
    moves = np.stack([w * (s - base).double().numpy() for w, s in zip(weights, sources, strict=True)])
    best = np.take_along_axis(moves, np.abs(moves).argmax(axis=0)[None], axis=0)[0]
    assert np.abs(merged.numpy() - (base.double().numpy() + 0.5 * best)).max() < 1e-6
