import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.merge.methods.elementwise import sphere
from tests.merge.methods.elementwise.test_karcher import spread
from tests.merge.whole import merge_one

A, B, C = torch.eye(3).unbind()


def multislerp(
    sources: list[Tensor], weights: list[float] | None = None, base: Tensor | None = None, **settings: bool
) -> Tensor:
    return merge_one([("multislerp", settings)], base, sources, weights=weights)


def test_a_quarter_of_a_right_angle_is_on_the_arc_and_not_on_the_chord() -> None:
    merged = multislerp([A, B], [0.75, 0.25])
    assert torch.allclose(merged, torch.tensor([0.9239, 0.3827, 0.0]), atol=1e-4)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9])
def test_two_directions_give_slerp(t: float) -> None:
    first, second = (source / source.norm() for source in spread(2))
    arc = merge_one([("slerp", {"t": t})], None, [first, second])
    assert torch.allclose(multislerp([first, second], [1 - t, t]), arc, atol=1e-6)


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("based", [False, True])
def test_agrees_with_an_iteration_on_whole_vectors_in_float64(count: int, based: bool) -> None:
    base = torch.randn(13, 17, generator=torch.Generator().manual_seed(1)) if based else None
    start = torch.zeros(13, 17) if base is None else base
    sources = [start + delta for delta in spread(count)]
    weights = [2.0 / (1 + place) for place in range(count)]
    vectors = [(source.double() - start.double()).numpy() for source in sources]
    length = sphere.mean_length(vectors, weights)
    wanted = start.double().numpy() + length * sphere.mean_direction(vectors, weights)
    assert np.abs(multislerp(sources, weights, base).numpy() - wanted).max() < 3e-6


def test_sources_are_averaged_as_they_are_where_negative_weights_leave_no_place_to_rest() -> None:
    """Far apart, what one pushes away and what the others pull lead on and on."""
    generator = torch.Generator().manual_seed(0)
    sources = list(torch.randn(3, 50, generator=generator).unbind())
    wanted = sources[0] - sources[1] + sources[2]
    assert torch.allclose(multislerp(sources, [1.0, -1.0, 1.0]), wanted, atol=1e-5)
    mild = multislerp(sources, [-0.1, 1.0, 1.0])
    assert not torch.allclose(mild, (-0.1 * sources[0] + sources[1] + sources[2]) / 1.9, atol=1e-3)


def test_it_converges_where_sources_are_more_than_a_right_angle_apart() -> None:
    vectors = [np.array([math.cos(a), math.sin(a), 0.4]) for a in (0.0, 2.2, 4.1)]
    wanted = sphere.mean_direction(vectors, [1, 1, 1], 5000)
    merged = multislerp([torch.from_numpy(vector).float() for vector in vectors])
    assert np.abs(sphere.unit(merged.double().numpy()) - wanted).max() < 1e-5


def test_without_normalising_lengths_are_added_up() -> None:
    merged = multislerp([A, B, C], [2.0, 2.0, 2.0], normalize=False)
    assert float(merged.norm()) == pytest.approx(6.0)
    assert torch.allclose(merged / 6, multislerp([A, B, C]), atol=1e-6)


def test_a_task_vector_of_zeros_shortens_and_does_not_turn() -> None:
    base = torch.tensor([5.0, 5.0, 5.0])
    assert torch.allclose(multislerp([base, base + 2 * A], base=base), base + A)


def test_sources_equal_to_the_base_give_the_base() -> None:
    base = torch.randn(9)
    assert torch.equal(multislerp([base.clone(), base.clone()], base=base), base)


def test_opposite_task_vectors_are_averaged_as_they_are() -> None:
    assert torch.allclose(multislerp([A + B, A - B], base=A), A)


def test_one_source_comes_back() -> None:
    assert torch.allclose(multislerp([3 * C], base=A), 3 * C)


def test_after_a_prepare_it_merges_the_prepared_task_vectors() -> None:
    base = torch.zeros(3)
    steps = [("trim", {"density": 0.34}), ("multislerp", {})]
    merged = merge_one(steps, base, [A + 0.1 * C, B + 0.1 * C])
    assert torch.allclose(merged, multislerp([A, B]), atol=1e-6)
