"""Which point of a front suits a preference, and what of a front is kept beside its job."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search.choice import FrontPoint, choose, points_of, suited
from search.errors import SearchInvalid
from search.result import MOST_MEASURED, kept_front
from search.trial import Told
from tests.search.problems import order, recipe, searched, two_hills, weights_space

NAMES = ["a", "b"]
MEASURED = [
    {"number": n, "point": {"x": x}, "values": [x, 10 * (1 - x * x)]} for n, x in enumerate((0.0, 0.6, 1.0))
]
PREDICTED = [{"point": {"x": 0.5}, "values": [0.5, 8.0]}, {"point": {"x": 0.9}, "values": [0.9, 2.0]}]


def points() -> list[FrontPoint]:
    return points_of({"measured": MEASURED, "predicted": PREDICTED})


def test_a_preference_picks_by_what_is_scaled_to_the_front_and_says_why() -> None:
    chosen = choose(points(), [1, 1], NAMES)
    assert (chosen.at.place, chosen.at.number, chosen.at.kind) == (1, 1, "measured")
    assert chosen.scaled == pytest.approx((0.6, 0.64)) and chosen.score == pytest.approx(0.62)
    assert "3 measured points" in chosen.why and "0.6 in a, 0.64 in b" in chosen.why and "1:1" in chosen.why
    assert choose(points(), [1, 0], NAMES).at.number == 2 and choose(points(), [0, 1], NAMES).at.number == 0
    predicted = choose(points(), [0, 1], NAMES, "predicted")
    assert (predicted.at.place, predicted.at.number, predicted.at.kind) == (3, None, "predicted")
    huge = choose(points(), [1e308, 1e308], NAMES)
    assert huge.at.place == 1 and huge.score == pytest.approx(0.62)


def test_an_objective_in_which_all_points_are_alike_says_nothing() -> None:
    assert suited([[1.0, 5.0], [2.0, 5.0]], [1, 9]) == 1
    assert suited([[2.0, 5.0], [2.0, 5.0]], [1, 9]) == 0, "of equal ones the first"


@pytest.mark.parametrize(
    ("preference", "among", "said", "pointer"),
    [
        ([1], "measured", r"2 here \(a, b\); it has 1", "/preference"),
        ([1, 2, 3], "measured", "it has 3", "/preference"),
        ([1, -2], "measured", "-2 is no say", "/preference"),
        ([1, float("nan")], "measured", "nan is no say", "/preference"),
        ([float("inf"), 1], "measured", "inf is no say", "/preference"),
        ([0, 0], "measured", "one number above 0", "/preference"),
        ([1, 1], "predicted", "no predicted points", "/among"),
    ],
)
def test_a_preference_that_says_nothing_is_refused(
    preference: list[float], among: Any, said: str, pointer: str
) -> None:
    measured = [each for each in points() if each.kind == "measured"]
    with pytest.raises(SearchInvalid, match=said) as caught:
        choose(measured, preference, NAMES, among)
    assert caught.value.pointer == pointer


def test_the_finished_front_is_asked_by_the_rule_of_the_order() -> None:
    for preference in ([1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [1.0, 3.0]):
        asked = order("map", weights_space(2), objectives=2, evals=20, preference=preference)
        _, result = searched(asked, 2, two_hills)
        kept = kept_front(result, recipe(2))
        assert kept is not None and len(kept["predicted"]) == len(result["predicted"]) > 1
        chosen = choose(points_of(kept), preference, NAMES)
        assert chosen.at.number == result["best"]["number"]


def test_a_front_is_kept_in_a_size_that_a_row_can_have() -> None:
    def many(x: NDArray[np.float64]) -> Told:
        return Told((float(x[0]), float(1 - x[0] ** 2)))

    asked = order("grid", weights_space(1), objectives=2, settings={"levels": 400}, evals=400)
    _, result = searched(asked, 1, many)
    kept = kept_front(result, recipe(1))
    assert kept is not None and kept["measured_total"] == len(result["front"]) == 400
    numbers = [each["number"] for each in kept["measured"]]
    assert len(numbers) == MOST_MEASURED and numbers == sorted(set(numbers))
    assert {0, 399} <= set(numbers), "the best of each objective"
    left_out = next(each for each in result["front"] if each["number"] not in numbers)
    kept = kept_front({**result, "best": left_out}, recipe(1))
    assert kept is not None and len(kept["measured"]) == MOST_MEASURED
    assert left_out["number"] in [each["number"] for each in kept["measured"]], "the best is always there"
    assert all(set(each) == {"number", "point", "values"} for each in kept["measured"])


def test_one_best_point_is_no_front_but_what_was_predicted_beside_it_is_kept() -> None:
    def hill(x: NDArray[np.float64]) -> Told:
        return Told((float(-((x[0] - 0.3) ** 2)),))

    _, result = searched(order("line", weights_space(1)), 1, hill)
    assert kept_front(result, recipe(1)) is None
    _, result = searched(order("map", weights_space(1), evals=12), 1, hill)
    kept = kept_front(result, recipe(1))
    assert kept is not None and kept["measured"][0]["number"] == result["best"]["number"]
    assert kept["predicted"][0]["point"]["x0"] == pytest.approx(0.3, abs=0.01)


def test_fronts_are_asked_without_numpy() -> None:
    code = "import sys, search.choice; assert 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
