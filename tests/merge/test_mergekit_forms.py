"""Every form of a mergekit configuration: all methods, slices, modules, tokenizers, as people write them."""

from typing import Any

import pytest

from merge.catalog import catalogue
from merge.errors import MergekitUnsupported
from merge.mergekit import Translation, read_recipe, translate
from merge.mergekit_methods import METHODS
from merge.plan import check_recipe
from merge.recipe import Recipe, canonical

WEIGHTED = {"weight": 1}
TIES_AFTER = {
    "density": 1.0, "scope": "tensor", "elect": "weighted_sum", "on_tie": "plus", "aggregate": "sum",
    "scale": 1.0,
}  # fmt: skip
CRUMBS = {"overlap": "shrink_gamma", "density": 1.0, "gamma": 0.01, "rescale": "none"}
CHAINS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"method": "linear", "normalize": True}],
    "slerp": [{"method": "slerp", "t": 0.25}],
    "nuslerp": [{"method": "nuslerp", "along": "tensor"}],
    "multislerp": [{"method": "multislerp_flat", "normalize": True}],
    "karcher": [{"method": "karcher", "max_iter": 10, "tol": 1e-5}],
    "passthrough": [{"method": "passthrough", "scale": 1.0}],
    "task_arithmetic": [{"method": "task_arithmetic", "normalize": False, "scale": 1.0}],
    "ties": [{"method": "ties", **TIES_AFTER, "normalize": True}],
    "dare_linear": [
        {"method": "dare", "density": 1.0, "rescale": "l1"},
        {"method": "task_arithmetic", "normalize": False, "scale": 1.0},
    ],
    "dare_ties": [
        {"method": "dare", "density": 1.0, "rescale": "l1"},
        {"method": "ties", **TIES_AFTER, "normalize": False},
    ],
    "breadcrumbs": [
        {"method": "breadcrumbs", **CRUMBS},
        {"method": "task_arithmetic", "normalize": False, "scale": 1.0},
    ],
    "breadcrumbs_ties": [
        {"method": "breadcrumbs", **CRUMBS},
        {"method": "ties", **TIES_AFTER, "normalize": False},
    ],
    "della": [
        {"method": "della", "density": 1.0, "epsilon": 0.15, "rescale": "l1"},
        {"method": "ties", **TIES_AFTER, "normalize": True},
    ],
    "della_linear": [
        {"method": "della", "density": 1.0, "epsilon": 0.15, "rescale": "l1"},
        {"method": "task_arithmetic", "normalize": False, "scale": 1.0},
    ],
    "sce": [{"method": "sce", "density": 1.0, "scale": 1.0, "on_tie": "plus", "equal_below": 1e-6}],
    "ram": [{"method": "ram", "epsilon": 1e-5, "scale": 1.0}],
    "ramplus_tl": [
        {"method": "ramplus_tl", "r": 0.1, "alpha": 0.2, "epsilon": 1e-5, "scale": 1.0, "scope": "tensor"}
    ],
    "model_stock": [{"method": "model_stock", "along": "tensor"}],
    "nearswap": [{"method": "nearswap", "t": 0.25}],
    "arcee_fusion": [{"method": "arcee_fusion", "reach": 1.5}],
}  # fmt: skip
ALONE = ("slerp", "passthrough", "nearswap", "arcee_fusion")


def models(*names: str, weight: bool = True) -> list[dict[str, Any]]:
    return [{"model": name, **({"parameters": dict(WEIGHTED)} if weight else {})} for name in names]


def plainest(method: str) -> dict[str, Any]:
    """The least that mergekit accepts for a method."""
    known = METHODS[method]
    names = ("org/a",) if method in ALONE else ("org/a", "org/b")
    weight = known.parameter("weight") is not None
    return {
        "merge_method": method,
        "models": models(*names, weight=weight),
        "parameters": {"t": 0.25} if known.parameter("t") else {},
        **({} if known.base == "ignored" else {"base_model": "org/base"}),
    }


def steps(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [step.model_dump() for step in translate(found).recipe.steps]


def says(found: dict[str, Any]) -> str:
    return " ".join(translate(found).notes)


def test_the_table_of_methods_is_the_whole_of_mergekits() -> None:
    assert sorted(CHAINS) == sorted(METHODS)


@pytest.mark.parametrize("method", sorted(CHAINS))
def test_every_method_becomes_its_chain_with_mergekits_defaults(method: str) -> None:
    assert steps(plainest(method)) == CHAINS[method]


@pytest.mark.parametrize("method", sorted(CHAINS))
def test_every_translation_is_a_recipe_that_our_methods_accept(method: str) -> None:
    assert check_recipe(translate(plainest(method)).recipe) == ()


@pytest.mark.parametrize("method", sorted(CHAINS))
def test_every_setting_that_is_written_exists(method: str) -> None:
    for step in CHAINS[method]:
        assert step.keys() - {"method"} <= catalogue()[step["method"]].settings.keys()


@pytest.mark.parametrize(
    ("method", "parameters", "place", "setting", "value"),
    [
        ("nuslerp", {"nuslerp_flatten": False}, 0, "along", "rows"),
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, 0, "along", "columns"),
        ("nuslerp", {"nuslerp_row_wise": True}, 0, "along", "tensor"),
        ("multislerp", {"normalize_weights": False}, 0, "normalize", False),
        ("karcher", {"max_iter": "20", "tol": "1e-7"}, 0, "max_iter", 20),
        ("model_stock", {"filter_wise": True}, 0, "along", "rows"),
        ("sce", {"select_topk": 0.1}, 0, "density", 0.1),
        ("breadcrumbs", {"gamma": 0.02, "density": 0.9}, 0, "gamma", 0.02),
        ("breadcrumbs", {"rescale": True}, 0, "rescale", "l1"),
        ("della", {"epsilon": 0.05}, 0, "epsilon", 0.05),
        ("della", {"rescale": False}, 0, "rescale", "none"),
        ("della_linear", {"normalize": "true"}, 1, "normalize", True),
        ("ramplus_tl", {"r": 0.3}, 0, "r", 0.3),
        ("ties", {"rescale": True, "density": 0.3}, 0, "rescale", "l1"),
        ("ties", {"rescale": True, "density": 0.3}, 0, "density", 0.3),
        ("ties", {"rescale": True, "density": 0.3}, 1, "density", 1.0),
        ("linear", {"normalize": [True, False]}, 0, "normalize", [True, False]),
    ],
)
def test_a_parameter_becomes_the_setting_it_is(
    method: str, parameters: dict[str, Any], place: int, setting: str, value: Any
) -> None:
    found = plainest(method)
    made = steps({**found, "parameters": {**found["parameters"], **parameters}})
    assert made[place][setting] == value


def test_a_parameter_of_another_method_is_left_out_with_a_word() -> None:
    found = {**plainest("slerp"), "parameters": {"t": 0.5, "int8_mask": True, "density": 0.5}}
    assert steps(found) == [{"method": "slerp", "t": 0.5}]
    assert "density has no effect on slerp" in says(found) and "int8_mask only changes" in says(found)


@pytest.mark.parametrize("where", ["models", "filters"])
def test_nuslerps_flags_are_for_the_whole_merge(where: str) -> None:
    flag: Any = {"nuslerp_flatten": False} if where == "models" else {"nuslerp_flatten": [True, False]}
    found = plainest("nuslerp")
    if where == "models":
        found["models"][0]["parameters"] |= flag
    else:
        found["parameters"] = flag
    with pytest.raises(MergekitUnsupported) as caught:
        translate(found)
    assert "once at the top level" in caught.value.findings[0].message


def test_a_base_that_is_not_among_the_models_is_one_more_model_of_karcher() -> None:
    found = {**plainest("karcher"), "base_model": "org/base"}
    recipe = translate(found).recipe
    assert [source.model for source in recipe.sources] == ["org/a", "org/b", "org/base"]
    assert (recipe.base, recipe.reference) == (None, "m2")


def test_a_base_of_linear_is_one_more_model_where_all_have_a_weight_and_else_only_the_reference() -> None:
    found = {**plainest("linear"), "base_model": "org/base"}
    alone = translate(found).recipe
    assert (len(alone.sources), alone.base, alone.reference) == (2, "org/base", "base")
    assert "gives only the config and the tokenizer" in says(found)
    shared = translate({**found, "parameters": {"weight": 0.5}}).recipe
    assert [(source.model, source.weight) for source in shared.sources][-1] == ("org/base", 0.5)


def test_optional_bases_are_read_where_they_are_named() -> None:
    found = plainest("nuslerp")
    assert translate(found).recipe.base == "org/base"
    del found["base_model"]
    recipe = translate(found).recipe
    assert recipe.base is None and len(recipe.sources) == 2


def test_a_base_with_a_lora_is_a_source_that_the_slice_names_as_its_base() -> None:
    recipe = translate({**plainest("ties"), "base_model": "org/base+org/lora"}).recipe
    assert recipe.base is None and len(recipe.slices) == 1
    told = next(source for source in recipe.sources if source.id == recipe.slices[0].base)
    assert (told.model, told.adapter) == ("org/base", "org/lora")
    assert recipe.sources[0] == told and recipe.reference is None
    assert [each.id for each in recipe.slices[0].sources] == ["m1", "m2"]


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
    body = {"models": models("org/a", "org/b")}
    recipe = translate({"merge_method": "linear", "modules": {"model.audio_tower": body}}).recipe
    assert recipe.modules["model_audio_tower"].tensors == ("model.audio_tower.*",)


def test_the_tokenizer_section_is_ours_in_other_words() -> None:
    end = {"kind": "model_token", "model": "org/base", "token_id": 2}
    tokenizer = {
        "source": "union",
        "pad_to_multiple_of": 64,
        "tokens": {
            "<|im_start|>": {"source": "org/a"},
            "<|im_end|>": {"source": end, "force": True},
            "<unused>": {"source": {"kind": "zero"}},
            "<same>": {"force": True},
        },
    }  # fmt: skip
    made = translate({**plainest("ties"), "tokenizer": tokenizer}).recipe.tokenizer
    assert made.model_dump(exclude_none=True, exclude={"k"}) == {
        "source": "union",
        "pad_to_multiple_of": 64,
        "tokens": {
            "<|im_start|>": {"source": "m0", "force": False},
            "<|im_end|>": {"source": {"model": "base", "token_id": 2}, "force": True},
            "<unused>": {"source": "zero", "force": False},
            "<same>": {"force": True},
        },
    }  # fmt: skip


def test_a_vocabulary_of_a_model_that_is_not_merged_is_refused_with_what_to_write() -> None:
    with pytest.raises(MergekitUnsupported, match="source: donor"):
        translate({**plainest("ties"), "tokenizer_source": "org/other"})


@pytest.mark.parametrize("template", ["auto", "chatml", "{{ messages }}"])
def test_chat_templates_are_taken_over(template: str) -> None:
    assert translate({**plainest("linear"), "chat_template": template}).recipe.chat_template == template


def test_an_overridden_architecture_is_left_out_with_a_word() -> None:
    reference = {"model": {"path": "org/a"}, "override_architecture": "MistralForCausalLM"}
    found = {"merge_method": "passthrough", "models": [{"model": reference}]}
    assert translate(found).recipe.sources[0].model == "org/a"
    assert "override_architecture is not needed" in says(found)


OLDEST = """
models:
  - model: mistralai/Mistral-7B-v0.1
    # no parameters necessary for base model
  - model: samir-fama/SamirGPT-v1
    parameters:
      density: 0.53
      weight: 0.4
  - model: abacusai/Slerp-CM-mist-dpo
    parameters: {density: 0.53, weight: 3e-1}
merge_method: dare_ties
base_model: mistralai/Mistral-7B-v0.1
parameters:
  int8_mask: true
dtype: bfloat16
tokenizer_source: base
"""


def test_the_usual_dare_ties_of_model_cards_is_understood() -> None:
    made = read(OLDEST)
    assert [(s.weight, s.settings) for s in made.recipe.sources] == [
        (0.4, {"dare.density": 0.53}), (0.3, {"dare.density": 0.53}),
    ]  # fmt: skip
    assert made.recipe.tokenizer.source == "base" and check_recipe(made.recipe) == ()
    assert any("int8_mask" in note for note in made.notes)


ANCHORED = """
x-common: &weights [0.2, 0.8, "1e-1"]
merge_method: della_linear
base_model: {model: {path: org/base, revision: main}}
models:
  - model: org/a+org/lora
    parameters: {weight: [0.2, 0.8, "1e-1"], density: [{filter: mlp, value: 0.5}, {value: 0.7}]}
  - {model: ./local/folder, parameters: {weight: 0.5}}
parameters: {normalize: true, lambda: 1.1, epsilon: 0.09, density: 0.6}
"""


def test_references_gradients_and_filters_of_models_mix() -> None:
    with pytest.raises(MergekitUnsupported, match="x-common"):
        read(ANCHORED)
    recipe = read(ANCHORED.replace('x-common: &weights [0.2, 0.8, "1e-1"]\n', "")).recipe
    assert recipe.base == "org/base@main"
    assert recipe.sources[0].weight == (0.2, 0.8, 0.1) and recipe.sources[0].adapter == "org/lora"
    assert [source.settings for source in recipe.sources] == [{"della.density": 0.7}, {"della.density": 0.6}]
    assert [(o.match, o.source, o.settings) for o in recipe.overrides] == [
        ("*mlp*", "m0", {"della.density": 0.5})
    ]
    assert recipe.steps[0].settings["epsilon"] == 0.09
    assert check_recipe(recipe) == ()


@pytest.mark.parametrize("text", [STACK, GRADIENT, BLOCK_SCALED, VISION, OLDEST])
def test_what_translate_prints_reads_back_as_the_same_recipe(text: str) -> None:
    made = read(text)
    shown = made.as_yaml()
    assert canonical(read(shown).recipe) == canonical(made.recipe)
    assert all(f"# {note}\n" in shown for note in made.notes)
