import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.merge.methods.elementwise import sphere
from tests.merge.whole import merge_one

A, B = torch.eye(2).unbind()
WEIGHTS = [1.0, 3.0]


def nuslerp(
    a: Tensor, b: Tensor, weights: list[float], base: Tensor | None = None, along: str = "tensor", **more: Any
) -> Tensor:
    return merge_one([("nuslerp", {"along": along})], base, [a, b], weights=weights, **more)


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(shape, generator=generator)
    return first, 2 * torch.randn(shape, generator=generator) + 0.5 * first


def turned(vectors: np.ndarray, others: np.ndarray, t: float) -> np.ndarray:
    """Row by row, in float64."""
    return np.stack([sphere.arc(a, b, t) for a, b in zip(vectors, others, strict=True)])


def test_the_place_on_the_arc_is_the_second_weights_share() -> None:
    assert torch.allclose(nuslerp(A, B, WEIGHTS), torch.tensor([0.382683, 0.923880]))
    assert torch.allclose(nuslerp(A, B, [0.1, 0.3]), torch.tensor([0.382683, 0.923880]))


@pytest.mark.parametrize(("weights", "wanted"), [([1.0, 0.0], A), ([0.0, 2.0], B)])
def test_a_source_with_all_the_weight_comes_back(weights: list[float], wanted: Tensor) -> None:
    assert torch.allclose(nuslerp(A, B, weights), wanted, atol=1e-7)


@pytest.mark.parametrize("based", [False, True])
def test_whole_tensors_agree_with_float64(based: bool) -> None:
    (a, b), base = pair(31, 17), torch.randn(31, 17) if based else torch.zeros(31, 17)
    wanted = base.double().numpy() + sphere.arc(a.double().numpy(), b.double().numpy(), 0.75)
    merged = nuslerp(base + a, base + b, WEIGHTS, base if based else None)
    assert np.abs(merged.numpy() - wanted).max() < 5e-6


@pytest.mark.parametrize("based", [False, True])
def test_rows_each_turn_by_their_own_angle(based: bool) -> None:
    (a, b), base = pair(31, 17), torch.randn(31, 17) if based else torch.zeros(31, 17)
    wanted = base.double().numpy() + turned(a.double().numpy(), b.double().numpy(), 0.75)
    merged = nuslerp(base + a, base + b, WEIGHTS, base if based else None, along="rows")
    assert np.abs(merged.numpy() - wanted).max() < 5e-6


@pytest.mark.parametrize("based", [False, True])
def test_columns_each_turn_by_their_own_angle(based: bool) -> None:
    (a, b), base = pair(31, 17), torch.randn(31, 17) if based else torch.zeros(31, 17)
    wanted = base.double().numpy() + turned(a.double().numpy().T, b.double().numpy().T, 0.75).T
    merged = nuslerp(base + a, base + b, WEIGHTS, base if based else None, along="columns")
    assert np.abs(merged.numpy() - wanted).max() < 5e-6


def test_a_filter_of_a_convolution_is_one_row() -> None:
    a, b = pair(4, 3, 2, 2)
    wanted = turned(a.double().reshape(4, -1).numpy(), b.double().reshape(4, -1).numpy(), 0.75)
    merged = nuslerp(a, b, WEIGHTS, along="rows")
    assert merged.shape == a.shape
    assert np.abs(merged.reshape(4, -1).numpy() - wanted).max() < 5e-6


@pytest.mark.parametrize("along", ["rows", "columns"])
def test_a_tensor_of_one_dimension_is_one_vector(along: str) -> None:
    a, b = pair(50)
    assert torch.allclose(nuslerp(a, b, WEIGHTS, along=along), nuslerp(a, b, WEIGHTS), atol=1e-6)


@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
def test_columns_and_rows_are_those_of_the_whole_tensor_and_not_of_a_block(along: str) -> None:
    a, b = pair(700, 300)
    cuts = [
        nuslerp(a, b, WEIGHTS, along=along, block=block, threads=threads)
        for block, threads in ((1 << 16, 1), (1 << 17, 3), (1 << 20, 1))
    ]
    assert all(torch.equal(cuts[0], other) for other in cuts[1:])


@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
def test_parallel_opposite_and_zero_vectors_are_joined_by_the_chord(along: str) -> None:
    a = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    for b in (3 * a, -a, torch.zeros(2, 2)):
        merged = nuslerp(a, b, WEIGHTS, along=along)
        assert torch.allclose(merged, 0.25 * a + 0.75 * b, atol=1e-6)


def test_it_keeps_to_the_arc_where_slerp_takes_the_chord() -> None:
    angle = 0.02
    b = torch.tensor([math.cos(angle), math.sin(angle)])
    merged = nuslerp(A, b, [1.0, 1.0])
    assert float(merged.double().norm()) == pytest.approx(1.0, abs=1e-7)
    assert float(merge_one([("slerp", {})], None, [A, b]).double().norm()) < 1 - 1e-5


def test_sources_equal_to_the_base_give_the_base() -> None:
    base = torch.randn(6, 5)
    for along in ("tensor", "rows", "columns"):
        assert torch.equal(nuslerp(base.clone(), base.clone(), WEIGHTS, base, along), base)


@pytest.mark.parametrize("along", ["rows", "columns"])
def test_experts_in_a_stack_are_turned_each_for_itself(along: str) -> None:
    a, b = pair(5, 31, 17)
    each = [nuslerp(one, other, WEIGHTS, along=along) for one, other in zip(a, b, strict=True)]
    assert torch.equal(nuslerp(a, b, WEIGHTS, along=along, role="expert"), torch.stack(each))
