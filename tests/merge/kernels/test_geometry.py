import math

import pytest
import torch

from merge.kernels.geometry import arc, cosines_of, lengths_of, spherical_mean

RIGHT = ((4.0, 0.0), (0.0, 9.0))
CLOSE = 1e-9


def mean(products: tuple[tuple[float, ...], ...], weights: tuple[float, ...]) -> tuple[float, ...]:
    return spherical_mean(products, weights, 500, CLOSE)


def factors(aa: float, ab: float, bb: float, t: float) -> list[float]:
    parts = (torch.tensor(value, dtype=torch.float64) for value in (aa, ab, bb))
    return [float(factor) for factor in arc(*parts, t)]


def test_lengths_and_cosines_come_from_inner_products() -> None:
    assert lengths_of(RIGHT) == (2.0, 3.0)
    assert cosines_of(((1.0, 1.0), (1.0, 4.0))) == ((1.0, 0.5), (0.5, 1.0))


def test_a_vector_of_zeros_has_cosine_zero_with_everything() -> None:
    assert cosines_of(((0.0, 0.0), (0.0, 4.0))) == ((0.0, 0.0), (0.0, 1.0))


def test_a_third_of_a_right_angle() -> None:
    assert factors(1, 0, 1, 1 / 3) == pytest.approx([math.cos(math.pi / 6), 0.5])


@pytest.mark.parametrize(("aa", "ab", "bb"), [(1, 2, 4), (1, -2, 4), (0, 0, 4), (0, 0, 0)])
def test_where_there_is_no_arc_the_chord_is_taken(aa: float, ab: float, bb: float) -> None:
    assert factors(aa, ab, bb, 0.25) == [0.75, 0.25]


def test_chord_and_arc_meet_where_one_takes_over_from_the_other() -> None:
    for angle in (0.9e-4, 1.1e-4):
        assert factors(1, math.cos(angle), 1, 0.3) == pytest.approx([0.7, 0.3], rel=1e-8)


def test_each_row_has_its_own_arc() -> None:
    one = torch.ones(2, 1, dtype=torch.float64)
    first, second = arc(one, torch.tensor([[0.0], [1.0]], dtype=torch.float64), one, 0.5)
    assert first.flatten().tolist() == pytest.approx([math.sqrt(0.5), 0.5])
    assert torch.equal(first, second)


def test_the_mean_of_a_right_angle_has_the_mean_length() -> None:
    half = 2.5 * math.sqrt(0.5)
    assert mean(RIGHT, (0.5, 0.5)) == pytest.approx([half / 2, half / 3])


def test_weights_of_any_sum_scale_the_length_and_leave_the_direction() -> None:
    once, twice = mean(RIGHT, (0.3, 0.7)), mean(RIGHT, (0.6, 1.4))
    assert twice == pytest.approx([2 * value for value in once])


def test_vectors_with_no_mean_direction_are_added_as_they_are() -> None:
    assert mean(((1.0, -1.0), (-1.0, 1.0)), (0.5, 0.5)) == (0.5, 0.5)
    assert mean(((0.0, 0.0), (0.0, 0.0)), (0.25, 0.75)) == (0.25, 0.75)


def test_an_opposite_vector_of_less_weight_does_not_turn_the_mean() -> None:
    first, second = mean(((1.0, -1.0), (-1.0, 1.0)), (0.75, 0.25))
    assert first - second == pytest.approx(1.0)


def test_a_vector_of_zeros_only_shortens() -> None:
    assert mean(((4.0, 0.0), (0.0, 0.0)), (0.5, 0.5)) == pytest.approx([0.5, 0.0])


def test_a_vector_of_zeros_has_no_say_in_a_single_step_either() -> None:
    pair = spherical_mean(((1.0, 0.6), (0.6, 1.0)), (0.2, 0.6), 1, CLOSE)
    zeros = ((1.0, 0.6, 0.0), (0.6, 1.0, 0.0), (0.0, 0.0, 0.0))
    assert spherical_mean(zeros, (0.2, 0.6, 0.9), 1, CLOSE) == pytest.approx([*pair, 0.0])


def test_a_vector_that_is_nothing_beside_another_is_one_of_zeros() -> None:
    """Brought to the other's length, it would be times a number that float32 does not have."""
    assert mean(((4.0, 0.0), (0.0, 1e-84)), (0.5, 0.5)) == pytest.approx([0.5, 0.0])
    assert max(mean(((4.0, 0.0), (0.0, 1e-66)), (0.5, 0.5))) < 1e35


def test_tiny_and_huge_vectors_are_no_trouble() -> None:
    for size in (1e-80, 1e80):
        small = ((size, 0.0), (0.0, size))
        assert mean(small, (0.5, 0.5)) == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])
