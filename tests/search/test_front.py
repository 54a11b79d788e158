"""The volume that a front covers."""

import itertools

import numpy as np
import pytest

from search.front import AT_ONCE, _counted, hypervolume, not_dominated

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


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
@pytest.mark.parametrize("points", [1, AT_ONCE - 1, AT_ONCE + 1, 5 * AT_ONCE])
def test_a_front_is_what_no_other_row_beats_and_of_equal_rows_the_first(points: int, objectives: int) -> None:
    rows = np.random.default_rng(points).integers(0, 9, (points, objectives)).astype(float)

    def beaten(at: int) -> bool:
        better = np.all(rows >= rows[at], axis=1) & np.any(rows > rows[at], axis=1)
        return bool(better.any()) or any(np.array_equal(rows[at], each) for each in rows[:at])

    assert not_dominated(rows) == [at for at in range(points) if not beaten(at)]


@pytest.mark.parametrize("objectives", [2, 3, 4, 5, 6])
def test_a_volume_is_that_of_the_union_of_the_boxes(objectives: int) -> None:
    rows = np.random.default_rng(objectives).random((9, objectives))
    assert hypervolume(rows, [0.0] * objectives) == pytest.approx(union(rows), rel=1e-12)


def test_many_points_in_eight_objectives_are_counted_and_do_not_take_for_ever() -> None:
    many = np.random.default_rng(0).dirichlet(np.ones(8), 40) ** 0.5
    assert 0 < hypervolume(many, [0.0] * 8) < 1
    few = many[:12]
    assert _counted(few) == pytest.approx(hypervolume(few, [0.0] * 8), rel=0.05)
