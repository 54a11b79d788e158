"""Methods that choose among whole sources."""

import json
import time

import pytest

from search.drive import Candidate, drive
from search.result import result_of
from search.trial import Told
from tests.search.problems import Memory, order, recipe, switch_space


def test_a_soup_may_lose_as_much_as_is_tolerated_with_a_source_and_no_more() -> None:
    def soup(tolerance: float) -> set[str]:
        asked = order("greedy_soup", switch_space(3), settings={"tolerance": tolerance})

        def score(candidates: list[Candidate]) -> list[Told]:
            gains = {"s0": 0.5, "s1": -0.1, "s2": -0.3}
            return [Told((sum(gains[s["id"]] for s in each.recipe["sources"]),)) for each in candidates]

        found = drive(asked, recipe(3), score, Memory(), clock=time.monotonic).found.point
        assert found is not None
        return {name for name, there in found.items() if there}

    assert soup(0.0) == {"x0"}
    assert soup(0.2) == {"x0", "x1"}, "what is lost is told from the best soup there was"
    assert soup(0.5) == {"x0", "x1", "x2"}


def test_greedy_soup_takes_what_helps_and_leaves_what_harms() -> None:
    gains = [0.2, 0.5, -0.3, 0.4]
    asked = order("greedy_soup", switch_space(4))
    result = _subset(asked, gains)
    assert result["best"]["point"] == {"x0": True, "x1": True, "x2": False, "x3": True}
    assert result["evaluations"] == 7


def _subset(asked, gains):  # type: ignore[no-untyped-def]
    def score(candidates):  # type: ignore[no-untyped-def]
        return [Told((sum(gains[int(s["id"][1:])] for s in c.recipe["sources"]),)) for c in candidates]

    ended = drive(asked, recipe(len(gains)), score, Memory(), clock=time.monotonic)
    return result_of(asked, recipe(len(gains)), ended)


@pytest.mark.parametrize("begin", ["all", "best"])
def test_expert_subset_says_which_help_and_what_each_is_worth(begin: str) -> None:
    result = _subset(
        order("expert_subset", switch_space(4), settings={"begin": begin}), [0.2, 0.5, -0.3, 0.4]
    )
    assert result["best"]["point"] == {"x0": True, "x1": True, "x2": False, "x3": True}
    assert result["notes"]["worth"] == pytest.approx({"x0": 0.2, "x1": 0.5, "x2": -0.3, "x3": 0.4})
    assert result["evaluations"] == {"all": 8, "best": 11}[begin]


def test_a_source_that_is_worth_nothing_falls_out() -> None:
    asked = order("expert_subset", switch_space(3), settings={"begin": "all"})
    assert _subset(asked, [0.25, 0.0, 0.5])["best"]["point"] == {"x0": True, "x1": False, "x2": True}


@pytest.mark.parametrize("method", ["greedy_soup", "expert_subset"])
def test_a_source_that_cannot_be_scored_is_worth_nothing_that_json_cannot_say(method: str) -> None:
    def score(candidates: list[Candidate]) -> list[Told]:
        return [
            Told(None, error="no") if "s1" in {s["id"] for s in each.recipe["sources"]} else Told((1.0,))
            for each in candidates
        ]

    asked = order(method, switch_space(3))
    found = result_of(asked, recipe(3), drive(asked, recipe(3), score, Memory(), clock=time.monotonic))
    assert found["failed"] and not found["best"]["point"]["x1"]
    assert found["notes"]["alone" if method == "greedy_soup" else "worth"]["x1"] is None
    json.dumps(found, allow_nan=False)
