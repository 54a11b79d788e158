"""Slices and modules of a mergekit configuration, as people write them."""

from typing import Any

import pytest

from merge.mergekit.translate import Translation, read_recipe, translate
from merge.plan import check_recipe
from merge.recipe.recipe import Recipe, canonical

STACK = """
slices:
  - sources:
    - model: org/a
      layer_range: [0, 24]
  - sources: # the middle of the other
    - model: org/b@v2
      layer_range: [8, 24]
  - sources:
      - {model: org/a, layer_range: [16, 32]}
merge_method: passthrough
dtype: float16
"""


def read(text: str) -> Translation:
    return read_recipe(text, "yaml")


def layers(recipe: Recipe) -> list[list[tuple[str, Any]]]:
    return [[(each.id, each.layers) for each in part.sources] for part in recipe.slices]


def test_a_frankenmerge_is_a_list_of_slices() -> None:
    recipe = read(STACK).recipe
    assert [(source.id, source.model) for source in recipe.sources] == [("m0", "org/a"), ("m1", "org/b@v2")]
    assert layers(recipe) == [[("m0", (0, 24))], [("m1", (8, 24))], [("m0", (16, 32))]]
    assert recipe.steps[0].model_dump() == {"method": "passthrough", "scale": 1.0}
    assert recipe.dtype.output == "float16"


GRADIENT = """
slices:
  - sources:
      - model: psmathur/orca_mini_v3_13b
        layer_range: [0, 40]
      - model: garage-bAInd/Platypus2-13B
        layer_range: [0, 40]
# or, the equivalent models: syntax
merge_method: slerp
base_model: garage-bAInd/Platypus2-13B
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
"""


def test_the_classic_gradient_slerp_starts_at_its_base() -> None:
    recipe = read(GRADIENT).recipe
    assert recipe.sources[0].model == "garage-bAInd/Platypus2-13B"
    assert layers(recipe) == [[("m0", (0, 40)), ("m1", (0, 40))]]
    assert [(o.match, o.settings["t"][0]) for o in recipe.overrides] == [("*mlp*", 1), ("*self_attn*", 0)]
    assert recipe.steps[0].settings == {"t": 0.5} and recipe.outer_depth == "zero"
    assert check_recipe(recipe) == ()


BLOCK_SCALED = """
merge_method: passthrough
slices:
- sources:
  - layer_range: [0, 8]
    model: meta/llama
- sources:
  - layer_range: [4, 8]
    model: meta/llama
    parameters:
      scale:
      - filter: o_proj
        value: 0.0
      - filter: down_proj
        value: 0.0
      - value: 1.0
- sources:
  - layer_range: [8, 12]
    model: meta/llama
"""


def test_scale_filters_of_one_slice_stay_in_it() -> None:
    recipe = read(BLOCK_SCALED).recipe
    assert [part.sources[0].settings for part in recipe.slices] == [{"scale": 1.0}] * 3
    assert recipe.slices[0].overrides == () == recipe.slices[2].overrides
    assert [(o.match, o.source, o.settings) for o in recipe.slices[1].overrides] == [
        ("*down_proj*", "m0", {"scale": 0}), ("*o_proj*", "m0", {"scale": 0}),
    ]  # fmt: skip
    assert check_recipe(recipe) == ()


def sliced(method: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"merge_method": method, "slices": list(parts), **more}


def part(*names: str, first: int = 0, **more: Any) -> dict[str, Any]:
    sources = [{"model": name, "layer_range": [first, first + 4]} for name in names]
    return {"sources": sources, **more}


def test_slices_of_task_vectors_take_the_base_out_of_their_sources() -> None:
    shifted = part("org/base", "org/a", "org/b")
    shifted["sources"][0]["layer_range"] = [4, 8]
    found = sliced("ties", part("org/a", "org/base", "org/b"), shifted, base_model="org/base",
                   parameters={"weight": 0.5})  # fmt: skip
    recipe = translate(found).recipe
    assert recipe.base == "org/base"
    assert [[each.id for each in each.sources] for each in recipe.slices] == [["m0", "m1"]] * 2
    assert [each.base_layers for each in recipe.slices] == [None, (4, 8)]
    assert check_recipe(recipe) == ()


def test_a_slice_may_name_another_base() -> None:
    found = sliced("task_arithmetic", part("org/a", "org/base"),
                   part("org/a", "org/other", base_model="org/other"),
                   base_model="org/base", parameters={"weight": 1})  # fmt: skip
    recipe = translate(found).recipe
    names = {source.id: source.model for source in recipe.sources}
    assert recipe.slices[0].base == "base"
    assert names[recipe.slices[1].base] == "org/other"
    assert [names[each.id] for each in recipe.slices[1].sources] == ["org/a"]


def test_the_nearest_of_source_slice_and_top_level_decides() -> None:
    first = part("org/base", "org/a", "org/b", parameters={"weight": 0.2, "lambda": 0.5})
    first["sources"][1]["parameters"] = {"weight": 0.9}
    second = part("org/base", "org/a", "org/b", first=4)
    shared = {"weight": [{"filter": "mlp", "value": 0.7}, {"value": 0.6}], "lambda": 2}
    found = sliced("task_arithmetic", first, second, base_model="org/base", parameters=shared)
    recipe = translate(found).recipe
    assert [[each.weight for each in each.sources] for each in recipe.slices] == [[0.9, 0.2], [0.6, 0.6]]
    assert [each.settings["scale"] for each in recipe.slices] == [0.5, 2]
    assert recipe.slices[0].overrides == () and len(recipe.slices[1].overrides) == 2
    assert {o.source: o.settings for o in recipe.slices[1].overrides} == {
        "m0": {"weight": 0.7}, "m1": {"weight": 0.7},
    }  # fmt: skip
    assert check_recipe(recipe) == ()


def test_a_plain_value_of_a_slice_silences_the_filters_of_the_top_level() -> None:
    shared = {"t": [{"filter": "mlp", "value": 0.8}, {"value": 0.5}]}
    first = part("org/a", "org/b", parameters={"t": 0.1})
    found = sliced("slerp", first, part("org/a", "org/b", first=4), base_model="org/a", parameters=shared)
    recipe = translate(found).recipe
    assert [each.settings["t"] for each in recipe.slices] == [0.1, 0.5]
    assert recipe.overrides == recipe.slices[0].overrides == ()
    assert recipe.slices[1].overrides[0].settings == {"t": 0.8}


VISION = """
merge_method: task_arithmetic
base_model: org/vlm
modules:
  text_decoder:
    models:
      - model: org/vlm-math
        parameters: {weight: 0.6}
      - model: org/vlm-code
    parameters: {weight: 0.4}
  vision_tower:
    slices:
      - sources:
          - {model: org/vlm, layer_range: [0, 27]}
          - {model: org/vlm-eyes, layer_range: [0, 27], parameters: {weight: 1.0}}
  multi_modal_projector:
    models: [{model: org/vlm-eyes, parameters: {weight: 1}}]
"""


def test_modules_keep_their_own_models_and_parameters() -> None:
    recipe = read(VISION).recipe
    assert recipe.base == "org/vlm"
    names = {source.id: source.model for source in recipe.sources}
    text, eyes, middle = (recipe.modules[name].slices[0] for name in recipe.modules)
    assert [(names[each.id], each.weight, each.layers) for each in text.sources] == [
        ("org/vlm-math", 0.6, None), ("org/vlm-code", 0.4, None),
    ]  # fmt: skip
    assert [(names[each.id], each.layers) for each in eyes.sources] == [("org/vlm-eyes", (0, 27))]
    assert "lm_head.*" in recipe.modules["text_decoder"].tensors and len(middle.sources) == 1
    assert check_recipe(recipe) == ()


def test_a_module_of_an_unlisted_architecture_is_the_start_of_names() -> None:
    body = {"models": [{"model": name, "parameters": {"weight": 1}} for name in ("org/a", "org/b")]}
    recipe = translate({"merge_method": "linear", "modules": {"model.audio_tower": body}}).recipe
    assert recipe.modules["model_audio_tower"].tensors == ("model.audio_tower.*",)


@pytest.mark.parametrize("text", [STACK, GRADIENT, BLOCK_SCALED, VISION])
def test_what_translate_prints_reads_back_as_the_same_recipe(text: str) -> None:
    made = read(text)
    shown = made.as_yaml()
    assert canonical(read(shown).recipe) == canonical(made.recipe)
    assert all(f"# {note}\n" in shown for note in made.notes)
