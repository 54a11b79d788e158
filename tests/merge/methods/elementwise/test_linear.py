import numpy as np
import torch

from tests.merge import reference
from tests.merge.whole import merge_one

A, B = torch.tensor([1.0, 2.0, -4.0]), torch.tensor([3.0, 6.0, 4.0])


def test_equal_weights_average() -> None:
    assert torch.equal(merge_one([("linear", {})], None, [A, B]), torch.tensor([2.0, 4.0, 0.0]))


def test_only_ratios_of_weights_matter() -> None:
    merged = merge_one([("linear", {})], None, [A, B], weights=[3.0, 1.0])
    assert torch.equal(merged, torch.tensor([1.5, 3.0, -2.0]))
    assert torch.equal(merged, merge_one([("linear", {})], None, [A, B], weights=[6.0, 2.0]))


def test_without_normalising_weights_are_factors() -> None:
    merged = merge_one([("linear", {"normalize": False})], None, [A, B], weights=[1.0, 0.5])
    assert torch.equal(merged, torch.tensor([2.5, 5.0, -2.0]))


def test_identical_models_are_given_back() -> None:
    same = torch.randn(1000)
    assert torch.allclose(
        merge_one([("linear", {})], None, [same] * 3, weights=[0.2, 0.5, 0.3]), same, rtol=1e-6
    )


def test_agrees_with_an_independent_float64_reference() -> None:
    sources = [torch.randn(41, 7) for _ in range(4)]
    weights = [0.1, 0.7, 2.0, -0.3]
    merged = merge_one([("linear", {})], None, sources, weights=weights)
    wanted = reference.linear([source.double().numpy() for source in sources], weights)
    assert np.abs(merged.numpy() - wanted).max() < 1e-5
