"""What may vary: points, vectors, and where they are written."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from merge.errors import RecipeInvalid
from merge.recipe.recipe import Recipe, recipe_from
from search.errors import SpaceInvalid
from search.space import Dimension, Space

RECIPE = Recipe.model_validate(
    {
        "base": "o/base",
        "sources": [{"id": "a", "model": "o/a"}, {"id": "b", "model": "o/b"}],
        "steps": ["dare", {"method": "ties", "density": 0.3}],
    }
).model_dump(mode="json")
SPACE = Space.model_validate(
    {
        "dimensions": {
            "weight": {"at": ["sources.a.weight", "sources.b.weight"], "low": 0.1, "high": 10, "log": True},
            "curve": {"at": "steps.ties.scale", "low": 0, "high": 2, "points": 3, "start": [0.5, 1.0, 2.0]},
            "drop": {"at": "sources.a.settings.dare.density", "low": 0.1, "high": 1},
            "density": {"at": "steps.1.density", "values": [0.1, 0.2, 0.5]},
            "norms": {"at": "steps.ties.scale", "where": "class:norm", "low": 0, "high": 1},
            "dare": {"at": "steps.dare"},
        }
    }
)


@pytest.mark.parametrize(("low", "high", "log"), [(0.14, 1.84, False), (0.45, 1.9, True), (0.3, 0.35, True)])
def test_the_ends_of_a_range_are_in_it_however_numbers_round(low: float, high: float, log: bool) -> None:
    dimension = Dimension(at="steps.0.scale", low=low, high=high, log=log)
    assert [dimension.value([unit]) for unit in (-0.5, 0.0, 1.0, 1.5)] == [low, low, high, high]


def test_a_point_is_written_where_it_belongs_and_the_recipe_is_valid() -> None:
    point = {
        "weight": 2.0,
        "curve": [0.1, 0.2, 0.3],
        "drop": 0.4,
        "density": 0.5,
        "norms": 0.25,
        "dare": True,
    }
    made = Recipe.model_validate(SPACE.place(RECIPE, point))
    assert [source.weight for source in made.sources] == [2.0, 2.0]
    assert made.sources[0].settings == {"dare.density": 0.4}
    assert made.steps[1].settings == {"scale": [0.1, 0.2, 0.3], "density": 0.5}
    assert made.overrides[-1].match == "class:norm" and made.overrides[-1].settings == {"ties.scale": 0.25}
    without = Recipe.model_validate(SPACE.place(RECIPE, {**point, "dare": False}))
    assert [step.method for step in without.steps] == ["ties"]
    assert RECIPE["steps"][1] == {"method": "ties", "density": 0.3}


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_every_vector_is_a_point_and_comes_back(vector: list[float]) -> None:
    point = SPACE.point(vector)
    assert SPACE.holds(point)
    assert SPACE.holds(SPACE.point(SPACE.vector(point)))
    again = SPACE.vector(SPACE.point(SPACE.vector(point)))
    assert again == pytest.approx(SPACE.vector(point), abs=1e-9)


def test_it_begins_where_it_is_told_else_in_the_middle() -> None:
    first = SPACE.first
    assert first["curve"] == [0.5, 1.0, 2.0] and first["weight"] == pytest.approx(1.0)
    assert first["dare"] is True and first["density"] == 0.2


def test_corners_are_all_lowest_and_all_highest() -> None:
    low, high = SPACE.corners
    assert low["weight"] == 0.1 and high["weight"] == 10 and low["dare"] is False and high["density"] == 0.5


def test_samples_hold_every_choice_and_both_ends_of_every_number() -> None:
    asked = {
        "kind": {"at": "steps.ties.density", "values": [0.1, 0.2, 0.3, 0.4]},
        "few": {"at": "steps.dare.density", "values": [0.5, 0.6]},
        "weight": {"at": "sources.a.weight", "low": 0, "high": 2},
        "b": {"at": "sources.b"},
    }
    space = Space.model_validate({"dimensions": asked})
    assert all(space.holds(point) for point in space.samples)
    for name, every in (("kind", {0.1, 0.2, 0.3, 0.4}), ("few", {0.5, 0.6}), ("weight", {0.0, 2.0})):
        assert {point[name] for point in space.samples} == every
    assert Space.model_validate({"dimensions": {"w": asked["weight"]}}).samples == ({"w": 0.0}, {"w": 2.0})


@pytest.mark.parametrize(
    ("dimension", "said"),
    [
        ({"at": "steps.ties.scale"}, "give low and high, or values"),
        ({"at": "steps.ties.scale", "low": 1, "high": 1}, "low must be below high"),
        ({"at": "steps.ties.scale", "low": 1}, "both be given"),
        ({"at": "steps.ties.scale", "low": 0, "high": 1, "log": True}, "low above 0"),
        ({"at": "steps.ties.scale", "low": 0, "high": 1, "values": [1, 2]}, "either low and high"),
        ({"at": "steps.ties.scale", "values": [1, 2], "points": 3}, "points of a curve"),
        ({"at": "sources.a", "low": 0, "high": 1}, "there or not"),
        ({"at": "steps.ties.scale", "low": 0, "high": 1, "start": 2}, "not a value"),
    ],
)
def test_a_dimension_that_makes_no_sense_is_refused(dimension: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Dimension.model_validate(dimension)


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("sources.c.weight", "'c' among the sources is not there; the recipe has a, b"),
        ("steps.slerp.t", "'slerp' among the steps is not there; the recipe has dare, ties"),
        ("sources.a.density", "settings.<setting>"),
        ("base", "no place in a recipe"),
        ("overrides.0.settings.x", "the recipe has none"),
        ("steps.².density", "'²' among the steps is not there"),
    ],
)
def test_a_place_that_is_not_in_the_recipe_is_named(at: str, said: str) -> None:
    space = Space.model_validate({"dimensions": {"x": {"at": at, "low": 0, "high": 1}}})
    with pytest.raises(SpaceInvalid, match=said) as caught:
        space.place(RECIPE, {"x": 0.5})
    assert caught.value.pointer == "/space/x/at"


def test_a_step_that_is_there_twice_is_told_by_its_number() -> None:
    twice = {**RECIPE, "steps": [{"method": "dare"}, {"method": "dare"}, {"method": "ties"}]}
    space = Space.model_validate({"dimensions": {"x": {"at": "steps.dare.density", "low": 0, "high": 1}}})
    with pytest.raises(SpaceInvalid, match="write its number"):
        space.place(twice, {"x": 0.5})


def test_a_source_whose_id_is_a_number_is_meant_by_its_id() -> None:
    numbered = {**RECIPE, "sources": [{"id": "1", "model": "o/a"}, {"id": "2", "model": "o/b"}]}
    space = Space.model_validate({"dimensions": {"x": {"at": "sources.1.weight", "low": 0, "high": 1}}})
    assert [each.get("weight") for each in space.place(numbered, {"x": 0.5})["sources"]] == [0.5, None]


def test_where_nothing_is_left_to_merge_the_recipe_is_none_that_could_be_merged() -> None:
    space = Space.model_validate({"dimensions": {"a": {"at": "sources.a"}, "b": {"at": "sources.b"}}})
    assert len(space.place(RECIPE, {"a": True, "b": False})["sources"]) == 1
    with pytest.raises(RecipeInvalid, match="sources must not be empty"):
        recipe_from(space.place(RECIPE, {"a": False, "b": False}))


STAGED = Recipe.model_validate(
    {
        "stages": {"mix": {"base": "o/base", "sources": ["o/a", "o/b"], "steps": ["dare", "ties"]}},
        "sources": ["stage:mix", "o/c"],
        "steps": ["linear"],
    }
).model_dump(mode="json")


def test_settings_sources_and_steps_of_a_stage_vary_as_those_of_a_recipe() -> None:
    asked: dict[str, Any] = {
        "density": {"at": "stages.mix.steps.ties.density", "low": 0, "high": 1},
        "norms": {"at": "stages.mix.steps.ties.scale", "where": "class:norm", "low": 0, "high": 1},
        "say": {"at": ["stages.mix.sources.0.weight", "sources.1.weight"], "low": 0, "high": 2},
        "dare": {"at": "stages.mix.steps.dare"},
    }
    space = Space.model_validate({"dimensions": asked})
    assert space.dimensions["dare"].switches and not space.dimensions["say"].switches
    point = {"density": 0.4, "norms": 0.5, "say": 1.5, "dare": False}
    made = Recipe.model_validate(space.place(STAGED, point))
    mix = made.stages["mix"]
    assert [(step.method, step.settings) for step in mix.steps] == [("ties", {"density": 0.4})]
    assert [each.settings for each in mix.overrides] == [{"ties.scale": 0.5}] and not made.overrides
    assert [each.weight for each in (mix.sources[0], made.sources[1])] == [1.5, 1.5]
    assert [step.method for step in made.steps] == ["linear"]
    both = {"a": {"at": "stages.mix.sources.0"}, "b": {"at": "stages.mix.sources.1"}}
    with pytest.raises(RecipeInvalid, match="sources must not be empty"):
        recipe_from(Space.model_validate({"dimensions": both}).place(STAGED, {"a": False, "b": False}))
    away = Space.model_validate(
        {"dimensions": {"x": {"at": "stages.mx.steps.ties.density", "low": 0, "high": 1}}}
    )
    with pytest.raises(SpaceInvalid, match="'mx' among the stages is not there; the recipe has mix"):
        away.place(STAGED, {"x": 0.5})


def test_a_recipe_stands_where_its_own_settings_are_and_nowhere_if_one_is_not_in_the_space() -> None:
    curve = {"at": "steps.ties.scale", "low": 0, "high": 2, "points": 3}
    asked: dict[str, Any] = {
        "weight": {"at": ["sources.a.weight", "sources.b.weight"], "low": 0, "high": 2},
        "density": {"at": "steps.ties.density", "values": [0.1, 0.3]},
        "dare": {"at": "steps.dare"},
    }
    space = Space.model_validate({"dimensions": asked})
    own = space.own(RECIPE)
    assert own == {"weight": 1.0, "density": 0.3, "dare": True} and space.place(RECIPE, own) == RECIPE
    assert space.place(RECIPE, {}) == RECIPE
    scaled = {**RECIPE, "steps": [RECIPE["steps"][0], {**RECIPE["steps"][1], "scale": 1.5}]}
    assert Space.model_validate({"dimensions": {"curve": curve}}).own(scaled) == {"curve": [1.5] * 3}
    for odd in (
        {"weight": {**asked["weight"], "high": 0.9}},
        {"density": {**asked["density"], "values": [0.1, 0.2]}},
        {"scale": {"at": "steps.ties.scale", "low": 0, "high": 2}},
        {"norms": {"at": "steps.ties.density", "where": "class:norm", "low": 0, "high": 1}},
    ):
        assert Space.model_validate({"dimensions": {**asked, **odd}}).own(RECIPE) == {}
    apart = {**RECIPE, "sources": [RECIPE["sources"][0], {**RECIPE["sources"][1], "weight": 0.5}]}
    assert space.own(apart) == {}
