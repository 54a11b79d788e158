"""Every form of a mergekit configuration: all methods, references, tokenizers, as people write them."""

from typing import Any

import pytest

from merge.catalog import catalogue
from merge.errors import MergekitUnsupported
from merge.mergekit.methods import METHODS
from merge.mergekit.translate import Translation, read_recipe, translate
from merge.plan import check_recipe
from merge.recipe.recipe import canonical

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
        ("linear", {"normalize": 0}, 0, "normalize", False),
        ("ties", {"rescale": "1", "density": 0.3}, 0, "rescale", "l1"),
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


def read(text: str) -> Translation:
    return read_recipe(text, "yaml")


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
    assert made.model_dump(exclude_none=True, exclude_defaults=True) == {
        "source": "union",
        "pad_to_multiple_of": 64,
        "tokens": {
            "<|im_start|>": {"source": "m0"},
            "<|im_end|>": {"source": {"model": "base", "token_id": 2}, "force": True},
            "<unused>": {"source": "zero"},
            "<same>": {"force": True},
        },
    }  # fmt: skip


def test_a_vocabulary_of_a_model_that_is_not_merged_is_a_donors_whose_rows_are_not_read() -> None:
    for key, value in (("tokenizer_source", "org/other@v1"), ("tokenizer", {"source": "org/other@v1"})):
        made = translate({**plainest("ties"), key: value})
        told = made.recipe.tokenizer
        assert (told.source, told.donor, told.approximate) == ("donor", "org/other@v1", "lend")
        assert any("org/other@v1, which is not merged" in note for note in made.notes)


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
        read(f'x-common: &weights [0.2, 0.8, "1e-1"]\n{ANCHORED}')
    recipe = read(ANCHORED).recipe
    assert recipe.base == "org/base@main"
    assert recipe.sources[0].weight == (0.2, 0.8, 0.1) and recipe.sources[0].adapter == "org/lora"
    assert [source.settings for source in recipe.sources] == [{"della.density": 0.7}, {"della.density": 0.6}]
    assert [(o.match, o.source, o.settings) for o in recipe.overrides] == [
        ("*mlp*", "m0", {"della.density": 0.5})
    ]
    assert recipe.steps[0].settings["epsilon"] == 0.09
    assert check_recipe(recipe) == ()


@pytest.mark.parametrize("text", [OLDEST, ANCHORED])
def test_what_translate_prints_reads_back_as_the_same_recipe(text: str) -> None:
    made = read(text)
    shown = made.as_yaml()
    assert canonical(read(shown).recipe) == canonical(made.recipe)
    assert all(f"# {note}\n" in shown for note in made.notes)
