import math

import numpy as np
import pytest
import torch

from tests.merge import reference
from tests.merge.whole import merge_one

A, B = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    return merge_one([("slerp", {"t": t})], None, [a, b])


def test_half_way_of_a_right_angle_stays_on_the_circle() -> None:
    assert torch.allclose(slerp(A, B, 0.5), torch.tensor([math.sqrt(0.5), math.sqrt(0.5)]))


def test_a_third_of_a_right_angle_is_thirty_degrees() -> None:
    assert torch.allclose(slerp(A, B, 1 / 3), torch.tensor([math.cos(math.pi / 6), 0.5]))


@pytest.mark.parametrize(("t", "wanted"), [(0.0, A), (1.0, B)])
def test_the_ends_are_the_sources(t: float, wanted: torch.Tensor) -> None:
    assert torch.allclose(slerp(A, B, t), wanted, atol=1e-7)


def test_almost_parallel_tensors_are_joined_by_the_chord() -> None:
    assert torch.allclose(slerp(A, 3 * A, 0.25), torch.tensor([1.5, 0.0]))


def test_opposite_tensors_are_joined_by_the_chord() -> None:
    assert torch.allclose(slerp(A + B, -2 * (A + B), 0.25), torch.tensor([0.25, 0.25]))


def test_a_tensor_of_zeros_is_no_trouble() -> None:
    assert torch.allclose(slerp(torch.zeros(2), B, 0.5), torch.tensor([0.0, 0.5]))


def test_the_angle_is_that_of_the_whole_tensor_and_not_of_a_block() -> None:
    a, b = torch.randn(200_000), torch.randn(200_000)
    parts = [merge_one([("slerp", {"t": 0.3})], None, [a, b], block=size) for size in (1 << 16, 1 << 20)]
    assert torch.equal(*parts)


def test_agrees_with_an_independent_float64_reference() -> None:
    a, b = torch.randn(31, 17), torch.randn(31, 17)
    wanted = reference.slerp(a.double().numpy(), b.double().numpy(), 0.3)
    assert np.abs(slerp(a, b, 0.3).numpy() - wanted).max() < 1e-5
