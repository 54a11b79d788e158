"""Budgets, failures, halving, and a run that is driven again from its journal."""

import itertools
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from search.drive import Candidate, Ended, drive
from search.errors import SearchFailed
from search.order import SearchOrder
from search.result import result_of
from search.trial import Ask, Found, Told
from tests.search.problems import (
    Memory,
    order,
    recipe,
    searched,
    sphere,
    switch_space,
    three_hills,
    two_hills,
    weights,
    weights_space,
)

METHODS = [
    ("grid", 2, {}), ("line", 1, {}), ("cma_es", 3, {}), ("tpe", 2, {}), ("nsga", 2, {"population": 8}),
    ("genome", 2, {}), ("genome", 2, {"plus": True}), ("m2n2", 2, {}), ("self_positioning", 2, {}),
    ("evo_merging", 4, {"denoise": ["x0", "x1"], "population": 6}),
    ("map", 2, {}), ("map", 2, {"mode": "bayesian"}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "width", "settings"), METHODS)
def test_a_killed_run_asks_nothing_twice_and_ends_the_same(method: str, width: int, settings: dict) -> None:  # type: ignore[type-arg]
    asked = order(method, weights_space(width), settings=settings, evals=40)
    whole, result = searched(asked, width, sphere)
    journal, calls = Memory(), itertools.count()

    def dies(x: np.ndarray) -> Told:  # type: ignore[type-arg]
        if next(calls) == 9:
            raise KeyboardInterrupt
        return sphere(x)

    def one_by_one(candidates: list[Candidate]) -> list[Told]:
        return [dies(weights(each)) for each in candidates]

    with pytest.raises(KeyboardInterrupt):
        drive(asked, recipe(width), one_by_one, journal, clock=time.monotonic)
    before = set(journal.known)
    scored: list[str] = []

    def goes_on(candidates: list[Candidate]) -> list[Told]:
        scored.extend(each.key for each in candidates)
        return [sphere(weights(each)) for each in candidates]

    again = drive(asked, recipe(width), goes_on, journal, clock=time.monotonic)
    assert [t.point for t in again.trials] == [t.point for t in whole.trials]
    assert not {(key, 1.0) for key in scored} & before
    assert result_of(asked, recipe(width), again)["best"] == result["best"]
    assert len(set(scored)) == len(scored)


@pytest.mark.parametrize(
    "asked",
    [
        order("map", weights_space(3), objectives=3, settings={"mode": "nested"}, evals=40),
        order("map", weights_space(3), objectives=3, preference=[1, 2, 0], evals=30),
        order("nsga", weights_space(3), objectives=3, settings={"variant": "nsga3"}, evals=60),
        order("tpe", weights_space(3), objectives=3, evals=30),
        order("greedy_soup", switch_space(3)),
        order("expert_subset", switch_space(3)),
    ],
    ids=lambda asked: "-".join([asked.method, *map(str, asked.settings.values())]),
)
def test_recorded_scores_give_the_identical_run(asked: SearchOrder) -> None:
    def problem(x: NDArray[np.float64]) -> Told:
        return three_hills(x) if len(asked.objectives) == 3 else sphere(x)

    def silent(x: NDArray[np.float64]) -> Told:
        raise AssertionError(f"{x} was scored before")

    journal = Memory()
    first, told = searched(asked, 3, problem, journal)
    again, same = searched(asked, 3, silent, journal)
    assert again.trials == first.trials and same == told
    assert told["front"] if asked.several else told["best"]


@pytest.mark.parametrize(("method", "width", "settings"), METHODS)
def test_the_budget_is_never_overrun_and_failures_are_recorded(
    method: str, width: int, settings: dict
) -> None:  # type: ignore[type-arg]
    calls = itertools.count()

    def flaky(x: np.ndarray) -> Told:  # type: ignore[type-arg]
        at = next(calls)
        if at % 4 == 2:
            return Told(None, error="the disk is full")
        return Told((float("nan"),)) if at % 7 == 3 else sphere(x)

    ended, result = searched(order(method, weights_space(width), settings=settings, evals=30), width, flaky)
    assert ended.evaluations <= 30
    assert result["failed"] == sum(1 for t in ended.trials if t.told.values is None) > 0
    assert {t.told.error for t in ended.trials if t.told.values is None} <= {
        "the disk is full",
        "a score is not a finite number",
    }
    assert np.isfinite(result["best"]["values"]).all()


def test_a_search_of_nothing_but_failures_says_the_first() -> None:
    with pytest.raises(SearchFailed, match="the first 25 candidates failed: no memory"):
        searched(order("grid", weights_space(2)), 2, lambda _: Told(None, error="no memory"))


@pytest.mark.parametrize("method", ["grid", "tpe", "nsga"])
def test_a_candidate_that_leaves_nothing_to_merge_fails_and_the_search_goes_on(method: str) -> None:
    def score(at: NDArray[np.float64]) -> Told:
        return Told((float(len(at)),)) if len(at) else Told(None, error="nothing to merge")

    ended, result = searched(order(method, switch_space(2), evals=40), 2, score)
    assert ended.why == "done" and result["failed"] == 1 and result["best"]["values"] == [2.0]


def test_the_same_recipe_is_scored_once() -> None:
    seen: list[tuple[float, ...]] = []

    def noted(x: np.ndarray) -> Told:  # type: ignore[type-arg]
        seen.append(tuple(x))
        return sphere(x)

    space = {"x0": {"at": "sources.s0.weight", "values": [0.5, 0.5, 0.25]}}
    ended, _ = searched(order("grid", space), 1, noted)
    assert seen == [(0.5,), (0.25,), (1.0,)] and ended.evaluations == 2  # the last: as it was sent


def test_what_is_handed_back_is_never_worse_than_the_recipe_as_it_was_sent() -> None:
    def more(x: np.ndarray) -> Told:  # type: ignore[type-arg]
        return Told((float(x.sum()),))

    half = {"x0": {"at": "sources.s0.weight", "low": 0, "high": 0.5}}
    ended, result = searched(order("grid", half, evals=5), 1, more)
    assert (ended.evaluations, len(ended.trials), ended.why) == (5, 5, "done")
    assert result["as_sent"] == {"number": 5, "values": [1.0]} and result["trials"][5]["point"] == {}
    assert result["best"] == {"number": 5, "point": {}, "values": [1.0], "recipe": recipe(1)}
    whole = {"x0": {"at": "sources.s0.weight", "low": 0, "high": 1}}
    ended, result = searched(order("grid", whole, evals=5), 1, more)
    assert ended.as_sent == ended.trials[4] and len(result["trials"]) == 5  # a candidate already
    assert result["as_sent"]["number"] == result["best"]["number"] == 4


def test_a_method_s_own_choice_gives_way_to_the_recipe_as_it_was_sent_where_that_scored_higher() -> None:
    def more(x: np.ndarray) -> Told:  # type: ignore[type-arg]
        return Told((float(len(x) if len(x) != 2 else -5),))

    asked = order("greedy_soup", switch_space(3))  # alone they are equals, two are worse: it stays with one
    ended, result = searched(asked, 3, more)
    assert ended.found.point is not None and sum(ended.found.point.values()) == 1
    best = result["best"]
    assert best["point"] == {"x0": True, "x1": True, "x2": True} and best["values"] == [3.0]


def test_a_front_has_the_recipe_as_it_was_sent_where_nothing_beats_it() -> None:
    half = weights_space(2)
    half["x0"] = {"at": "sources.s0.weight", "low": 0, "high": 0.5}

    def corner(x: np.ndarray) -> Told:  # type: ignore[type-arg]
        return Told((float(x[0]), float(x[1])))

    _, result = searched(order("grid", half, objectives=2, settings={"levels": 3}), 2, corner)
    assert [each["point"] for each in result["front"]] == [{}] and result["best"]["values"] == [1.0, 1.0]


def test_a_recipe_that_cannot_be_scored_as_it_was_sent_is_told_and_what_was_found_counts() -> None:
    def broken(x: np.ndarray) -> Told:  # type: ignore[type-arg]
        return Told(None, error="no memory") if x[0] == 1 else sphere(x)

    half = {"x0": {"at": "sources.s0.weight", "low": 0, "high": 0.5}}
    _, result = searched(order("grid", half, evals=5), 1, broken)
    assert result["as_sent"] == {"number": 5, "values": None} and result["best"]["number"] < 5
    assert result["trials"][5]["error"] == "no memory" and result["failed"] == 0


def test_time_ends_a_search_and_counts_over_runs() -> None:
    asked = order("tpe", weights_space(2), budget={"evaluations": 100, "seconds": 10})
    now = itertools.count(0, 3)
    journal = Memory()
    ended = drive(
        asked, recipe(2), lambda cs: [sphere(weights(c)) for c in cs], journal, clock=lambda: next(now)
    )
    assert ended.why == "seconds" and 0 < len(ended.trials) < 20
    nothing = Memory()
    nothing.spent_seconds = 11.0
    with pytest.raises(SearchFailed, match=r"give budget\.seconds more"):
        drive(asked, recipe(2), lambda _: [], nothing, clock=time.monotonic)


@pytest.mark.parametrize("halving", [None, {"begin": 0.5, "factor": 2}])
@pytest.mark.parametrize("scored", [0, 1, 3])
def test_a_run_that_was_killed_when_its_time_was_up_ends_as_it_would_have(
    halving: dict[str, float] | None, scored: int
) -> None:
    """Of its last batch ``scored`` candidates were scored before it was killed."""
    budget = {"evaluations": 100, "seconds": 100}
    asked = order("tpe", weights_space(2), budget=budget, halving=halving)

    def whole(candidates: list[Candidate]) -> list[Told]:
        return [sphere(weights(each)) for each in candidates]

    def ran(late_from: int, journal: Memory) -> Ended:
        looks = itertools.count()
        return drive(
            asked, recipe(2), whole, journal, clock=lambda: 999.0 if next(looks) >= late_from else 0.0
        )

    first = ran(15, kept := Memory())
    assert first.why == "seconds" and len(first.trials) > 8
    batch = {trial.key for trial in first.trials[-4:]}
    known = [place for place in kept.known if place[0] in batch and place[1] == first.trials[-4].told.share]
    journal, left = Memory(), known[scored:] if scored else []
    journal.known = {place: told for place, told in kept.known.items() if place not in left}
    journal.spent_seconds = 100.0
    again = drive(asked, recipe(2), whole, journal, clock=time.monotonic)
    assert again.why == "seconds" and again.trials == first.trials


def test_device_seconds_end_a_search() -> None:
    asked = order("tpe", weights_space(2), budget={"evaluations": 100, "gpu_seconds": 10})
    told = [Told((0.5,), seconds=2.0)] * 4
    ended = drive(asked, recipe(2), lambda cs: told[: len(cs)], Memory(), clock=time.monotonic)
    assert ended.why == "gpu_seconds" and len(ended.trials) == 8


def test_halving_scores_the_worst_on_a_part_only_and_counts_the_part() -> None:
    asked = order(
        "grid", weights_space(1), settings={"levels": 8}, evals=8, halving={"begin": 0.25, "factor": 2}
    )
    ended, result = searched(asked, 1, sphere)
    shares = [t.told.share for t in ended.trials]
    assert [shares.count(share) for share in (0.25, 0.5, 1.0)] == [8, 4, 2]
    assert ended.evaluations == 8 * 0.25 + 4 * 0.5 + 2
    assert result["best"]["point"]["x0"] == pytest.approx(2 / 7)


@pytest.mark.parametrize("begin", [0.25, 0.5])
def test_a_method_does_not_follow_what_was_given_up(begin: float) -> None:
    """Few examples flatter everybody, those most that are found out later."""
    heard: list[list[Told]] = []

    def listening(space: Any, settings: Any, task: Any) -> Any:
        heard.append((yield [Ask({"x0": at / 8}) for at in range(8)]))
        return Found()

    def flattered(candidates: list[Candidate]) -> list[Told]:
        return [Told((float(weights(each)[0]) - 3 * each.share,)) for each in candidates]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.drive.load", lambda name: listening)
        asked = order("tpe", weights_space(1), evals=50, halving={"begin": begin, "factor": 2})
        ended = drive(asked, recipe(1), flattered, Memory(), clock=time.monotonic)
    values = [told.values[0] for told in heard[0] if told.values]
    assert values == sorted(values) and len(set(values)) == 8
    assert ended.trials[0].told.values == (-3 * begin,)


@pytest.mark.parametrize("huge", [1e300, 1.7e308])
@pytest.mark.parametrize(("method", "settings"), [("genome", {}), ("map", {"mode": "bayesian"})])
def test_scores_as_large_as_numbers_go_end_no_search(
    method: str, settings: dict[str, Any], huge: float
) -> None:
    def far_off(x: NDArray[np.float64]) -> Told:
        return Told((-huge if x[0] > 0.5 else huge if x[1] > 0.7 else -float(x.sum()),))

    ended, _ = searched(order(method, weights_space(2), settings=settings, evals=30), 2, far_off)
    assert ended.why in ("done", "evaluations") and len(ended.trials) >= 12


def test_a_front_is_what_nothing_beats_and_a_preference_picks_of_it() -> None:
    space = weights_space(2)
    _, result = searched(order("grid", space, objectives=2, settings={"levels": 11}), 2, two_hills)
    values = np.array([each["values"] for each in result["front"]])
    for row in values:
        assert not ((values >= row).all(1) & (values > row).any(1)).any()
    _, first = searched(
        order("grid", space, objectives=2, settings={"levels": 11}, preference=[1, 0]), 2, two_hills
    )
    assert first["best"]["point"] == pytest.approx({"x0": 0.2, "x1": 0.8})
    _, second = searched(
        order("grid", space, objectives=2, settings={"levels": 11}, preference=[0, 1]), 2, two_hills
    )
    assert second["best"]["point"] == pytest.approx({"x0": 0.8, "x1": 0.3})
    assert first["hypervolume"]["value"] == second["hypervolume"]["value"] > 0


def test_a_front_whose_volume_is_beyond_every_number_has_none() -> None:
    """Perplexities of a candidate that is far off."""
    asked = order("grid", weights_space(1), objectives=2, settings={"levels": 3})
    _, result = searched(asked, 1, lambda at: Told((-(1e200 ** at[0]), -(1e200 ** (1 - at[0])))))
    assert result["hypervolume"] is None and len(result["front"]) == 3


@pytest.mark.parametrize(
    ("method", "space", "more"),
    [
        ("cma_es", weights_space(2), {"evals": 6}),
        ("cma_es", weights_space(9), {"evals": 10}),
        ("nsga", weights_space(2), {"settings": {"population": 4}, "evals": 4}),
        ("map", weights_space(1), {"objectives": 2, "evals": 3}),
        ("map", weights_space(1), {"objectives": 2, "evals": 3, "settings": {"mode": "bayesian"}}),
        ("map", weights_space(2), {"objectives": 2, "evals": 7, "settings": {"mode": "nested"}}),
        ("map", weights_space(3), {"objectives": 3, "evals": 13, "settings": {"mode": "nested"}}),
        ("greedy_soup", switch_space(3), {"evals": 3}),
        ("expert_subset", switch_space(3), {"evals": 4, "settings": {"begin": "all"}}),
    ],
)
def test_the_least_budget_is_enough_for_the_method(
    method: str, space: dict[str, Any], more: dict[str, Any]
) -> None:
    asked = order(method, space, **more)

    def problem(x: NDArray[np.float64]) -> Told:
        each = sphere(x[:5]).values or ()
        return Told(tuple(each[0] * (1 + at) + at * x[0] for at in range(len(asked.objectives))))

    ended, _ = searched(asked, len(space), problem)
    assert ended.why == "done" and ended.trials
    if method == "map":
        told = ended.found.notes
        assert "surrogate" not in told and (ended.found.front or told["pairs"])


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("population", [4, 20])
def test_both_stages_of_evo_merging_have_a_population_within_the_least_budget(
    share: float, population: int
) -> None:
    settings = {"denoise": ["x0"], "first_share": share, "population": population}
    with pytest.raises(ValidationError) as refused:
        order("evo_merging", weights_space(2), settings=settings, evals=4)
    least = int(str(refused.value).split("at least ")[1].split()[0])
    ended, _ = searched(order("evo_merging", weights_space(2), settings=settings, evals=least), 2, sphere)
    stages = [{trial.point[name] for trial in ended.trials if trial.point} for name in ("x0", "x1")]
    assert all(len(values) > population // 2 for values in stages)


@pytest.mark.parametrize(
    ("method", "space", "more", "said"),
    [
        ("annealing", weights_space(2), {}, "there is no search method 'annealing'; there are cma_es"),
        ("grid", {}, {}, "the space is empty"),
        ("tpe", weights_space(65), {}, "the space has 65 dimensions, and at most 64 are searched"),
        ("grid", weights_space(3), {"evals": 100}, "needs at least 125 evaluations here, the budget has 100"),
        ("line", weights_space(2), {}, "searches one number"),
        ("cma_es", weights_space(1), {}, "for one, take line"),
        ("map", switch_space(2), {}, "numbers only"),
        ("map", weights_space(3), {"evals": 9, "objectives": 2}, "at least 10 evaluations"),
        ("greedy_soup", weights_space(2), {}, "every dimension must be at sources.<id>"),
        ("greedy_soup", {"x": {"at": "sources.s0.weight", "values": [0, 1]}}, {}, "must be at sources.<id>"),
        ("evo_merging", weights_space(4), {"settings": {"denoise": ["y"]}}, "'y', which is not in the space"),
        ("evo_merging", weights_space(4), {}, "settings.denoise"),
        ("tpe", weights_space(2), {"settings": {"startup": 0}}, "settings.startup"),
        ("m2n2", weights_space(2), {"halving": {}}, "no halving"),
        ("tpe", weights_space(2), {"preference": [1, 2]}, "one number an objective"),
        ("map", weights_space(2), {"reference": [1], "objectives": 2}, "one score an objective"),
        ("map", weights_space(2), {"reference": ["nan", 0], "objectives": 2}, "finite number"),
        ("map", weights_space(3), {"settings": {"mode": "nested"}, "objectives": 2}, "pairs dimensions"),
        ("map", weights_space(2), {"settings": {"mode": "nested"}, "objectives": 2, "evals": 6}, "least 7"),
        ("cma_es", weights_space(2), {"evals": 5}, "at least 6 evaluations"),
        ("cma_es", weights_space(2), {"evals": 8, "settings": {"population": 9}}, "at least 9"),
        ("nsga", weights_space(2), {"evals": 19}, "at least 20"),
        ("evo_merging", weights_space(2), {"settings": {"denoise": ["x0"]}, "evals": 39}, "at least 40"),
        (
            "evo_merging",
            weights_space(2),
            {"settings": {"denoise": ["x0"], "first_share": 0.9}, "evals": 199},
            "at least 200",
        ),
        ("greedy_soup", switch_space(3), {"evals": 2}, "at least 3"),
        ("expert_subset", switch_space(3), {"evals": 2}, "at least 3"),
        ("expert_subset", switch_space(3), {"evals": 3, "settings": {"begin": "all"}}, "at least 4"),
        ("self_positioning", weights_space(2, points=3), {}, "no points"),
        ("self_positioning", weights_space(2) | {"x0": {"at": "sources.s0.weight", "low": 0.1, "high": 1}},
         {}, "low: 0"),
        ("tpe", weights_space(2), {"settings": {"startups": 3}}, "no such setting; it has startup, batch"),
        ("map", weights_space(17), {"settings": {"mode": "bayesian"}, "evals": 500}, "at most 16 numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_it_begins(method, space, more, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValidationError, match=said):
        order(method, space, **more)
