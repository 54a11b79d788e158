"""For every tensor the recipe comes down to plain numbers, by rules that can be told in advance."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from merge.planning.resolve import (
    Spot,
    interpolate,
    matches,
    policy_for,
    setting_sites,
    settings_for,
    weights_for,
    whole,
)
from merge.recipe.recipe import Recipe, recipe_from

MLP = "model.layers.3.mlp.up_proj.weight"
NORM = "model.norm.weight"


def recipe(**parts: Any) -> Recipe:
    sources = [{"id": "a", "model": "org/a"}, {"id": "b", "model": "org/b", "weight": [0.0, 1.0]}]
    return recipe_from({"sources": sources, "steps": [{"method": "ties"}], **parts})


def resolved(
    found: Recipe, step: int = 0, tensor: str = MLP, depth: float = 0.5, **more: Any
) -> dict[str, Any]:
    role = "norm" if tensor == NORM else "linear"
    return settings_for(
        Spot(tensor, role, None if tensor == NORM else 3, depth), found.steps[step], whole(found), **more
    )


def test_a_curve_becomes_the_number_at_its_depth() -> None:
    found = recipe(steps=[{"method": "ties", "density": [0.2, 0.4, 1.0], "scope": "tensor"}])
    assert resolved(found, depth=0.25) == {"density": pytest.approx(0.3), "scope": "tensor"}
    assert resolved(found, depth=1.0)["density"] == 1.0


def test_a_list_of_words_is_picked_from_not_mixed() -> None:
    found = recipe(steps=[{"method": "ties", "normalize": [True, False], "scope": ["tensor", "global"]}])
    assert resolved(found, depth=0.99) == {"normalize": True, "scope": "tensor"}
    assert resolved(found, depth=1.0) == {"normalize": False, "scope": "global"}


def test_a_source_speaks_for_itself_and_the_step_for_the_rest() -> None:
    found = recipe(
        sources=[{"id": "a", "model": "x", "settings": {"density": 0.9}}, {"id": "b", "model": "y"}],
        steps=[{"method": "ties", "density": 0.3}],
    )
    assert resolved(found)["density"] == (0.9, 0.3)


def test_what_nobody_said_is_left_to_the_method() -> None:
    found = recipe(sources=[{"model": "x", "settings": {"density": 0.9}}, {"model": "y"}])
    assert resolved(found)["density"] == (0.9, None)
    assert "scale" not in resolved(found)


def test_a_later_override_wins_and_one_for_a_source_changes_that_source() -> None:
    found = recipe(
        steps=[{"method": "ties", "density": 0.1}],
        overrides=[
            {"match": "*.mlp.*", "settings": {"density": 0.2}},
            {"match": "layer:2-4", "settings": {"density": 0.3}},
            {"match": "class:linear", "source": "b", "settings": {"density": [0.0, 1.0]}},
            {"match": "*.self_attn.*", "settings": {"density": 0.9}},
        ],
    )
    assert resolved(found)["density"] == (0.3, 0.5)
    assert resolved(found, tensor=NORM)["density"] == 0.1


def test_a_qualified_name_speaks_to_its_step_only() -> None:
    found = recipe(
        sources=[{"id": "a", "model": "x", "settings": {"dare.density": 0.5, "density": 0.8}}],
        steps=[{"method": "dare"}, {"method": "ties", "density": 1.0}],
    )
    assert resolved(found, 0) == {"density": (0.5,)}
    assert resolved(found, 1) == {"density": (0.8,)}


def test_settings_of_other_steps_are_left_out_where_the_knobs_are_known() -> None:
    found = recipe(overrides=[{"match": "*", "settings": {"density": 0.2, "omega": 1}}])
    assert resolved(found, knobs={"density", "scale"}) == {"density": 0.2}


def test_weights_follow_curves_and_overrides() -> None:
    found = recipe(
        overrides=[
            {"match": NORM, "settings": {"weight": 2}},
            {"match": MLP, "source": "a", "settings": {"weight": [0, 4]}},
        ]
    )
    assert weights_for(Spot(MLP, "linear", 3, 0.25), whole(found)) == (1.0, 0.25)
    assert weights_for(Spot(NORM, "norm", None, 1.0), whole(found)) == (2.0, 2.0)
    assert weights_for(Spot("other", "linear", 0, 0.5), whole(found)) == (1.0, 0.5)
    assert "weight" not in resolved(found)


def test_a_policy_comes_from_the_last_override_then_the_class() -> None:
    found = recipe(
        classes={"norm": "mean"},
        overrides=[{"match": "*.3.*", "policy": "source:a"}, {"match": "*.up_proj.*", "policy": "error"}],
    )
    assert policy_for(Spot(MLP, "linear", 3, 0.0), whole(found), found.classes) == "error"
    assert policy_for(Spot("model.layers.3.x", "linear", 3, 0.0), whole(found), found.classes) == "source:a"
    assert policy_for(Spot(NORM, "norm", None, 0.0), whole(found), found.classes) == "mean"
    assert policy_for(Spot("lm_head.weight", "head", None, 0.0), whole(found), found.classes) is None


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("*", True), ("*.mlp.*", True), ("*.attn.*", False), (MLP, True), ("mlp", False),
        ("class:linear", True),
        ("class:norm", False), ("layer:3", True), ("layer:0-2", False), ("layer:3-3", True),
        ("*up[_]proj*", True),
        ("MODEL*", False),
    ],
)  # fmt: skip
def test_what_a_match_means(match: str, expected: bool) -> None:
    assert matches(match, MLP, "linear", 3) is expected


def test_layers_never_match_what_is_outside_them() -> None:
    assert not matches("layer:0-999", NORM, "norm", None)


def test_every_setting_is_listed_with_its_pointer() -> None:
    found = recipe(
        sources=[{"id": "a", "model": "x", "settings": {"ties.density": 0.5}}],
        steps=["dare", {"method": "ties", "scale": 2}],
        overrides=[{"match": "*", "source": "a", "settings": {"density": 0.2}}],
    )
    sites = [
        (site.pointer, site.step, site.setting, site.value, site.source) for site in setting_sites(found)
    ]
    assert sites == [
        ("/sources/0/settings/ties.density", 1, "density", 0.5, "a"),
        ("/steps/1/scale", 1, "scale", 2, None),
        ("/overrides/0/settings/density", None, "density", 0.2, "a"),
    ]


curves = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9).map(tuple)


@given(curves, st.floats(0, 1))
@example((0.7, 0.7), 0.285)
def test_a_curve_never_leaves_its_points(curve: tuple[float, ...], depth: float) -> None:
    assert min(curve) <= interpolate(curve, depth) <= max(curve)


@given(curves)
def test_a_curve_passes_through_its_ends(curve: tuple[float, ...]) -> None:
    assert interpolate(curve, 0.0) == curve[0]
    assert interpolate(curve, 1.0) == curve[-1]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1), st.floats(0, 1))
def test_between_two_points_a_curve_is_monotone(low: float, high: float, one: float, two: float) -> None:
    one, two = sorted((one, two))
    rise = interpolate((low, high), two) - interpolate((low, high), one)
    assert rise * (high - low) >= -1e-3


@given(st.floats(-1e6, 1e6), st.integers(1, 9), st.floats(0, 1))
def test_a_flat_curve_is_flat(value: float, points: int, depth: float) -> None:
    assert interpolate((value,) * points, depth) == pytest.approx(value, rel=1e-12)
