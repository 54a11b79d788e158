"""The volume that a front covers."""

import itertools

import numpy as np
import pytest

from search.front import _counted, hypervolume

CUBES = np.array([[1.0, 1.0, 3.0], [1.0, 3.0, 1.0], [3.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])


def union(rows: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> float:
    """The volume of all boxes by adding and taking away every overlap."""
    total = 0.0
    for count in range(1, len(rows) + 1):
        for some in itertools.combinations(rows, count):
            total -= (-1.0) ** count * float(np.min(some, axis=0).prod())
    return total


def test_volumes_worked_by_hand() -> None:
    assert hypervolume(np.array([[3.0], [5.0]]), [1.0]) == 4.0
    assert hypervolume(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]), [0.0, 0.0]) == 6.0
    assert hypervolume(CUBES, [0.0, 0.0, 0.0]) == 11.0
    assert hypervolume(CUBES, [1.0, 1.0, 1.0]) == 1.0
    assert hypervolume(CUBES, [9.0, 0.0, 0.0]) == 0.0


@pytest.mark.parametrize("objectives", [2, 3, 4, 5, 6])
def test_a_volume_is_that_of_the_union_of_the_boxes(objectives: int) -> None:
    rows = np.random.default_rng(objectives).random((9, objectives))
    assert hypervolume(rows, [0.0] * objectives) == pytest.approx(union(rows), rel=1e-12)


def test_many_points_in_eight_objectives_are_counted_and_do_not_take_for_ever() -> None:
    many = np.random.default_rng(0).dirichlet(np.ones(8), 40) ** 0.5
    assert 0 < hypervolume(many, [0.0] * 8) < 1
    few = many[:12]
    assert _counted(few) == pytest.approx(hypervolume(few, [0.0] * 8), rel=0.05)
