import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.merge.methods.elementwise import sphere
from tests.merge.whole import merge_one

A, B, C = torch.eye(3).unbind()


def karcher(sources: list[Tensor], weights: list[float] | None = None, **settings: float) -> Tensor:
    return merge_one([("karcher", settings)], None, sources, weights=weights)


def spread(count: int, shape: tuple[int, ...] = (13, 17)) -> list[Tensor]:
    """Tensors 60 to 90 degrees apart, of lengths that differ."""
    generator = torch.Generator().manual_seed(count)
    common = torch.randn(shape, generator=generator)
    own = [torch.randn(shape, generator=generator) for _ in range(count)]
    return [(0.5 * common + each) * (1 + place) for place, each in enumerate(own)]


def test_the_corners_of_an_octant_meet_in_its_middle() -> None:
    assert torch.allclose(karcher([A, B, C]), torch.full((3,), math.sqrt(1 / 3)))


def test_weights_move_the_mean_along_the_arc() -> None:
    wanted = torch.tensor([math.cos(3 * math.pi / 8), math.sin(3 * math.pi / 8), 0])
    assert torch.allclose(karcher([A, B], [1.0, 3.0]), wanted, atol=1e-6)


def test_only_the_ratio_of_the_weights_matters() -> None:
    sources = spread(3)
    assert torch.allclose(karcher(sources, [1.0, 2.0, 3.0]), karcher(sources, [0.1, 0.2, 0.3]), atol=1e-6)


def test_lengths_are_averaged_as_numbers() -> None:
    assert float(karcher([2 * A, 4 * B]).norm()) == pytest.approx(3.0)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_agrees_with_an_iteration_on_whole_vectors_in_float64(count: int) -> None:
    sources = spread(count)
    weights = [1.0 + 0.5 * place for place in range(count)]
    vectors = [source.double().numpy() for source in sources]
    wanted = sphere.mean_direction(vectors, weights) * sphere.mean_length(vectors, weights)
    merged = karcher(sources, weights, max_iter=200, tol=1e-8)
    assert np.abs(merged.numpy() - wanted).max() < 3e-6


def test_the_mean_is_where_the_pulls_of_all_sources_cancel() -> None:
    vectors = [source.double().numpy() for source in spread(5)]
    mean = sphere.unit(karcher(spread(5), max_iter=200, tol=1e-8).double().numpy())
    pull = sum(sphere.logarithm(mean, sphere.unit(vector)) for vector in vectors)
    assert np.linalg.norm(pull) < 1e-5


def test_without_steps_it_is_the_normalised_sum() -> None:
    wanted = torch.tensor([0.25, 0.75, 0]) / math.hypot(0.25, 0.75)
    assert torch.allclose(karcher([A, B], [0.25, 0.75], max_iter=0), wanted)


def test_more_steps_come_nearer() -> None:
    sources = spread(3)
    weights = [1.0, 5.0, 0.2]
    goal = karcher(sources, weights, max_iter=500, tol=1e-8)
    off = [float((karcher(sources, weights, max_iter=n, tol=1e-8) - goal).norm()) for n in (0, 1, 3)]
    assert off[0] > off[1] > off[2] > 0


def test_one_source_and_equal_sources_come_back() -> None:
    (source,) = spread(1)
    assert torch.allclose(karcher([source]), source, atol=1e-6)
    assert torch.allclose(karcher([source] * 8), source, atol=1e-5)


def test_zeros_have_no_say_in_the_direction_but_in_the_length() -> None:
    assert torch.allclose(karcher([torch.zeros(3), 2 * A]), A)
    assert torch.equal(karcher([torch.zeros(3), torch.zeros(3)]), torch.zeros(3))


def test_opposite_tensors_are_averaged_as_they_are() -> None:
    assert torch.equal(karcher([A, -A]), torch.zeros(3))
    assert torch.allclose(karcher([3 * A, -A]), A)


def test_three_that_cancel_each_other_are_averaged_as_they_are() -> None:
    turns = [torch.tensor([math.cos(a), math.sin(a)]) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    assert torch.allclose(karcher(turns), torch.zeros(2), atol=1e-6)


def test_the_base_takes_no_part() -> None:
    sources = spread(2)
    assert torch.equal(merge_one([("karcher", {})], torch.ones(13, 17), sources), karcher(sources))


def test_sources_are_averaged_as_they_are_where_negative_weights_leave_no_place_to_rest() -> None:
    sources = list(torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).unbind())
    wanted = sources[0] - sources[1] + sources[2]
    for steps in (10, 11, 1000):
        assert torch.allclose(karcher(sources, [1.0, -1.0, 1.0], max_iter=steps), wanted, atol=1e-5)
    mild = karcher(sources, [-0.1, 1.0, 1.0])
    assert not torch.allclose(mild, (-0.1 * sources[0] + sources[1] + sources[2]) / 1.9, atol=1e-3)
