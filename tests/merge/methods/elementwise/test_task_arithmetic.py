import numpy as np
import torch

from tests.merge import reference
from tests.merge.whole import merge_one

BASE = torch.tensor([1.0, 1.0, 1.0])
SOURCES = [torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 3.0, 3.0])]


def merge(weights: list[float] | None = None, **settings: object) -> torch.Tensor:
    return merge_one([("task_arithmetic", settings)], BASE, SOURCES, weights=weights)


def test_task_vectors_are_added() -> None:
    assert torch.equal(merge(), torch.tensor([2.0, 3.0, 2.0]))


def test_scale_and_weights_multiply_task_vectors() -> None:
    assert torch.equal(merge([1.0, -0.5], scale=0.5), torch.tensor([1.5, 0.5, 0.0]))


def test_scale_zero_gives_the_base() -> None:
    assert torch.equal(merge(scale=0.0), BASE)


def test_normalising_averages() -> None:
    assert torch.equal(merge(normalize=True), torch.tensor([1.5, 2.0, 1.5]))


def test_agrees_with_an_independent_float64_reference() -> None:
    base = torch.randn(29, 11)
    sources = [base + torch.randn(29, 11) for _ in range(3)]
    weights = [1.0, 0.25, -0.5]
    merged = merge_one([("task_arithmetic", {"scale": 0.4})], base, sources, weights=weights)
    wide = [tensor.double().numpy() for tensor in (base, *sources)]
    assert np.abs(merged.numpy() - reference.task_arithmetic(wide[0], wide[1:], weights, 0.4)).max() < 1e-5
