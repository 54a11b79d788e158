import json
import subprocess
import sys
from typing import Any

import pytest

from merge.catalog import catalogue
from merge.errors import RecipeInvalid
from merge.plan import check_recipe
from merge.recipe.presets import PRESETS, Preset, entry_of, expand, listing
from merge.recipe.recipe import Recipe, canonical, recipe_from

EVERY = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


def recipe(*steps: Any, **fields: Any) -> Recipe:
    return recipe_from({"base": "b", "sources": ["x", "y", "z"], "steps": list(steps), **fields})


def steps_of(made: Recipe) -> list[tuple[str, dict[str, Any]]]:
    return [(step.method, step.settings) for step in made.steps]


@EVERY
def test_every_preset_is_a_valid_chain(preset: Preset) -> None:
    assert not check_recipe(recipe(preset.name))


@EVERY
def test_every_setting_a_preset_lists_can_be_set_beside_it(preset: Preset) -> None:
    properties = entry_of(preset).schema["properties"]
    made = recipe({"method": preset.name, **{name: body["default"] for name, body in properties.items()}})
    assert not check_recipe(made)
    assert sum(len(settings) for _, settings in steps_of(made)) == len(properties)


@EVERY
def test_presets_are_no_methods_and_say_what_they_do(preset: Preset) -> None:
    assert preset.name not in catalogue()
    assert preset.about.endswith(".")
    assert len(preset.chain) > 1


def test_a_name_alone_becomes_its_chain() -> None:
    assert steps_of(recipe("dare_ties")) == [("dare", {}), ("ties", {"density": 1.0, "normalize": False})]


def test_a_chain_written_out_is_the_same_recipe() -> None:
    written = recipe("dare", {"method": "ties", "density": 1.0, "normalize": False})
    assert canonical(recipe({"method": "dare_ties"})) == canonical(written)


def test_a_setting_goes_to_the_first_method_that_has_it() -> None:
    made = recipe({"method": "dare_ties", "density": 0.4, "scale": 0.7, "elect": "sum"})
    assert steps_of(made) == [
        ("dare", {"density": 0.4}),
        ("ties", {"density": 1.0, "normalize": False, "scale": 0.7, "elect": "sum"}),
    ]


def test_a_methods_name_in_front_chooses_the_method() -> None:
    made = recipe({"method": "dare_ties", "ties.density": 0.9, "settings": {"dare.density": [0.1, 0.2]}})
    assert steps_of(made)[0] == ("dare", {"density": [0.1, 0.2]})
    assert made.steps[1].settings["density"] == 0.9


def test_sources_and_overrides_speak_to_the_first_method_that_has_a_setting() -> None:
    made = recipe(
        "dare_ties",
        sources=["x", {"model": "y", "settings": {"density": 0.3, "scale": 0.5}}],
        overrides=[{"match": "*.mlp.*", "settings": {"density": [0.1, 0.2], "weight": 2.0}}],
    )
    assert made.sources[1].settings == {"dare.density": 0.3, "scale": 0.5}
    assert made.overrides[0].settings == {"dare.density": [0.1, 0.2], "weight": 2.0}


def test_slices_do_so_too() -> None:
    part = {"sources": [{"id": "m0", "layers": [0, 2], "settings": {"density": 0.3}}]}
    made = recipe("dare_ties", sources=["x"], slices=[{**part, "settings": {"density": 0.2}}])
    assert made.slices[0].settings == {"dare.density": 0.2}
    assert made.slices[0].sources[0].settings == {"dare.density": 0.3}


def test_a_step_beside_a_preset_hears_bare_names_as_well() -> None:
    made = recipe("trim", "dare_ties", sources=[{"model": "x", "settings": {"density": 0.3}}])
    assert made.sources[0].settings == {"trim.density": 0.3, "dare.density": 0.3}


def test_a_name_with_a_method_wins_over_a_bare_one_at_the_same_place() -> None:
    settings = {"dare.density": 0.2, "density": 0.3}
    assert recipe("dare_ties", sources=[{"model": "x", "settings": settings}]).sources[0].settings == {
        "dare.density": 0.2
    }


def test_a_recipe_without_presets_is_left_alone() -> None:
    document = {"sources": ["x"], "steps": ["dare", "ties"], "overrides": [{"settings": {"density": 1}}]}
    assert expand(document) is document


def test_an_unknown_setting_is_found_with_the_nearest_name() -> None:
    (finding,) = check_recipe(recipe({"method": "dare_ties", "normalise": True}))
    assert finding.code == "setting_unknown"
    assert "did you mean 'normalize'" in finding.message


def test_a_misspelt_preset_is_answered_with_the_nearest() -> None:
    (finding,) = check_recipe(recipe("dare_tys"))
    assert finding.code == "unknown_method"
    assert "did you mean 'dare_ties'" in finding.message


@pytest.mark.parametrize(
    "step",
    [{"method": "dare_ties", "settings": 3}, {"method": "dare_ties", "scale": 1, "settings": {"scale": 1}}],
)
def test_a_malformed_step_is_told_as_such(step: Any) -> None:
    with pytest.raises(RecipeInvalid):
        recipe(step)


def test_methods_and_presets_are_listed_together() -> None:
    assert listing().keys() == catalogue().keys() | PRESETS.keys()
    entry = listing()["dare_ties"]
    assert json.loads(json.dumps(entry.as_dict())) == entry.as_dict()
    assert entry.kind == "preset"
    assert entry.schema["properties"]["ties.density"]["default"] == 1.0
    assert entry.needs["base"] is True


def test_presets_load_no_torch() -> None:
    code = (
        "import sys; from merge.recipe.presets import listing\n"
        "assert listing(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
