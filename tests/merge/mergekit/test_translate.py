"""A mergekit configuration becomes our recipe with its conventions spelt out, or is refused by name."""

from typing import Any

import pytest

from merge.arch.roles import Towers
from merge.errors import MergekitUnsupported
from merge.mergekit.translate import is_mergekit, read_recipe, translate
from merge.plan import check_recipe
from merge.planning.resolve import Spot, settings_for, weights_for, whole
from merge.recipe.recipe import Recipe

LAYERS = [
    f"model.layers.{layer}.{module}.weight"
    for layer in range(5)
    for module in ("mlp.up_proj", "self_attn.q_proj")
]
NAMES = ["model.embed_tokens.weight", *LAYERS, "model.norm.weight", "lm_head.weight"]


def config(method: str, **parts: Any) -> dict[str, Any]:
    models = [
        {"model": "org/a", "parameters": {"weight": 0.5}},
        {"model": "org/b", "parameters": {"weight": 0.3}},
    ]
    return {"merge_method": method, "base_model": "org/base", "models": models, **parts}


def depth(recipe: Recipe, name: str) -> float:
    role: Any = "head" if name.startswith("lm_head") else "norm" if "norm" in name else "linear"
    return Towers.of(NAMES).depth(name, role, recipe.outer_depth)


def value(recipe: Recipe, name: str, setting: str, step: int = -1) -> Any:
    spot = Spot(name, "linear", None, depth(recipe, name))
    return settings_for(spot, recipe.steps[step], whole(recipe))[setting]


def weights(recipe: Recipe, name: str) -> tuple[float, ...]:
    return weights_for(Spot(name, "linear", None, depth(recipe, name)), whole(recipe))


def step(found: dict[str, Any], position: int = -1) -> dict[str, Any]:
    return translate(found).recipe.steps[position].settings


def notes(found: dict[str, Any]) -> str:
    return " ".join(translate(found).notes)


def test_either_form_is_recognised() -> None:
    assert is_mergekit(config("linear"))
    assert not is_mergekit({"sources": [], "steps": []})
    assert read_recipe("sources: [a]\nsteps: [linear]", "yaml").notes == ()
    assert (
        read_recipe("merge_method: passthrough\nmodels: [{model: a}]", "yaml").recipe.steps[0].method
        == "passthrough"
    )


def test_linear_divides_by_the_sum_of_weights_unless_told_otherwise() -> None:
    recipe = translate(config("linear")).recipe
    assert [source.weight for source in recipe.sources] == [0.5, 0.3]
    assert recipe.steps[0].settings == {"normalize": True}
    assert step(config("linear", parameters={"normalize": False})) == {"normalize": False}


def test_linear_counts_a_base_among_its_models_and_needs_none() -> None:
    models = [
        {"model": "org/base", "parameters": {"weight": 1}},
        {"model": "org/a", "parameters": {"weight": "1e-3"}},
    ]
    recipe = translate(config("linear", models=models)).recipe
    assert [(source.model, source.weight) for source in recipe.sources] == [("org/base", 1), ("org/a", 0.001)]
    without = config("linear")
    del without["base_model"]
    assert translate(without).recipe.base is None


def test_ties_trims_by_tensor_elects_by_weighted_sum_and_normalizes() -> None:
    found = config("ties", parameters={"density": 0.4, "lambda": 0.7})
    assert step(found) == {
        "scale": 0.7, "density": 0.4, "scope": "tensor",
        "elect": "weighted_sum", "on_tie": "plus", "aggregate": "sum", "normalize": True,
    }  # fmt: skip
    assert "max(1, int(density * n))" in notes(found)
    assert "before signs are elected" in notes(found)


def test_each_model_may_have_its_own_density() -> None:
    models = [
        {"model": "org/a", "parameters": {"weight": 1, "density": 0.2}},
        {"model": "org/b", "parameters": {"weight": 1}},
    ]
    recipe = translate(config("ties", models=models, parameters={"density": 0.6})).recipe
    assert value(recipe, LAYERS[0], "density") == (0.2, 0.6)


def test_task_arithmetic_sums_without_dividing_unless_told() -> None:
    recipe = translate(config("task_arithmetic", parameters={"lambda": 2})).recipe
    assert recipe.steps[0].model_dump() == {"method": "task_arithmetic", "scale": 2, "normalize": False}
    assert step(config("task_arithmetic", parameters={"normalize": True})) == {
        "scale": 1.0,
        "normalize": True,
    }
    assert recipe.base == "org/base"


def test_a_negative_weight_is_remarked_where_it_matters() -> None:
    models = [{"model": "org/a", "parameters": {"weight": [1, -1]}}]
    assert "Negative weights" in notes(config("ties", models=models))
    assert "Negative weights" not in notes(config("ties"))


@pytest.mark.parametrize(("method", "last"), [("dare_linear", "task_arithmetic"), ("dare_ties", "ties")])
def test_dare_is_a_step_of_its_own_and_keeps_the_l1_norm(method: str, last: str) -> None:
    found = config(method, parameters={"density": 0.6})
    recipe = translate(found).recipe
    assert [step.method for step in recipe.steps] == ["dare", last]
    assert recipe.steps[0].settings == {"density": 0.6, "rescale": "l1"}
    assert recipe.steps[1].settings.get("density", 1.0) == 1.0
    assert recipe.steps[1].settings.get("normalize", False) is False
    assert "L1 norm" in notes(found)
    assert step(config(method, parameters={"rescale": False}), 0)["rescale"] == "none"


def test_densities_of_single_models_reach_dare_and_not_ties() -> None:
    models = [{"model": "org/a", "parameters": {"weight": 1, "density": [0.2, 0.4]}}]
    recipe = translate(config("dare_ties", models=models)).recipe
    assert value(recipe, LAYERS[-1], "density", 0) == (0.4,)
    assert value(recipe, LAYERS[-1], "density", 1) == 1.0


def test_slerp_runs_from_the_base_to_the_other_model_in_any_order() -> None:
    models = [{"model": "org/other"}, {"model": "org/base"}]
    recipe = translate(config("slerp", models=models, parameters={"t": 0.3})).recipe
    assert [source.model for source in recipe.sources] == ["org/base", "org/other"]
    assert recipe.steps[0].settings == {"t": 0.3}
    alone = translate(config("slerp", models=[{"model": "org/other"}], parameters={"t": 0.3})).recipe
    assert [source.model for source in alone.sources] == ["org/base", "org/other"]


def test_a_gradient_of_what_is_one_whole_number_is_told_by_the_plan() -> None:
    recipe = translate(config("karcher", parameters={"max_iter": [10, 20]})).recipe
    assert [finding.pointer for finding in check_recipe(recipe)] == ["/steps/0/max_iter"]


def test_filters_and_gradients_resolve_as_in_mergekit() -> None:
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0]},
        {"value": 0.25},
    ]
    found = config("slerp", models=[{"model": "org/other"}], parameters={"t": t})
    recipe = translate(found).recipe
    attention = [value(recipe, name, "t") for name in LAYERS if "self_attn" in name]
    assert attention == pytest.approx([0, 0.5, 0.3, 0.7, 1])
    assert [value(recipe, name, "t") for name in LAYERS if "mlp" in name] == pytest.approx(
        [1, 0.75, 0.5, 0.25, 0]
    )
    assert value(recipe, "model.norm.weight", "t") == 0.25


def test_the_first_filter_that_fits_wins_and_what_follows_a_plain_value_is_dead() -> None:
    rules = [
        {"filter": "up", "value": 1}, {"filter": "mlp", "value": 2}, {"filter": "*", "value": 3},
        {"filter": "q_proj", "value": 4}
    ]  # fmt: skip
    models = [{"model": "org/a", "parameters": {"weight": rules}}]
    recipe = translate(config("task_arithmetic", models=models)).recipe
    assert weights(recipe, "model.layers.1.mlp.up_proj.weight") == (1,)
    assert weights(recipe, "model.layers.1.mlp.down_proj.weight") == (2,)
    assert weights(recipe, "model.layers.1.self_attn.q_proj.weight") == (3,)


def test_a_models_own_filters_come_before_the_top_levels() -> None:
    models = [
        {"model": "org/a", "parameters": {"weight": [{"filter": "mlp", "value": 0.9}]}},
        {"model": "org/b"},
    ]
    shared = {"weight": [{"filter": "q_proj", "value": 0.1}, {"value": 0.2}]}
    recipe = translate(config("task_arithmetic", models=models, parameters=shared)).recipe
    assert weights(recipe, "model.layers.1.mlp.up_proj.weight") == (0.9, 0.2)
    assert weights(recipe, "model.layers.1.self_attn.q_proj.weight") == (0.1, 0.1)
    assert weights(recipe, "model.norm.weight") == (0.2, 0.2)


def test_gradients_are_at_their_start_outside_the_layers() -> None:
    models = [{"model": "org/a", "parameters": {"weight": [0.1, 0.9]}}]
    found = config("linear", models=models)
    recipe = translate(found).recipe
    assert [
        weights(recipe, name)[0]
        for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight")
    ] == [0.1] * 3
    assert weights(recipe, LAYERS[-1]) == (0.9,)
    assert "outer_depth: zero" in notes(found)


def test_a_filter_is_plain_text_even_where_globs_have_signs() -> None:
    models = [{"model": "org/a", "parameters": {"weight": [{"filter": "w[0]*", "value": 5}, {"value": 1}]}}]
    recipe = translate(config("linear", models=models)).recipe
    assert weights(recipe, "a.w[0]*.b") == (5,)
    assert weights(recipe, "a.w0x.b") == (1,)


def test_passthrough_copies_one_model_scaled_where_told() -> None:
    models = [{"model": "org/a", "parameters": {"scale": [{"filter": "o_proj", "value": 0}, {"value": 2}]}}]
    recipe = translate({"merge_method": "passthrough", "models": models}).recipe
    assert value(recipe, "model.layers.0.self_attn.o_proj.weight", "scale") == (0,)
    assert value(recipe, "model.norm.weight", "scale") == (2,)
    assert step({"merge_method": "passthrough", "models": [{"model": "org/a"}]}) == {"scale": 1.0}


@pytest.mark.parametrize(
    ("reference", "model", "adapter"),
    [
        ("org/a", "org/a", None), ("org/a@v1", "org/a@v1", None), ("org/a+org/l", "org/a", "org/l"),
        ("org/a@v1+org/l@v2", "org/a@v1", "org/l@v2"), ("./local/folder", "./local/folder", None),
        ({"model": {"path": "org/a", "revision": "v1"}, "lora": {"path": "org/l"}}, "org/a@v1", "org/l"),
        ({"model": "org/a", "lora": None}, "org/a", None),
    ],
)  # fmt: skip
def test_model_references_are_read(reference: Any, model: str, adapter: str | None) -> None:
    source = translate({"merge_method": "passthrough", "models": [{"model": reference}]}).recipe.sources[0]
    assert (source.model, source.adapter) == (model, adapter)


def test_the_base_among_task_vector_models_is_left_out() -> None:
    models = [
        {"model": "org/base", "parameters": {"weight": 9}},
        {"model": "org/a", "parameters": {"weight": 1}},
    ]
    found = config("ties", models=models)
    assert [source.model for source in translate(found).recipe.sources] == ["org/a"]
    assert "own parameters have no effect" in notes(found)


def test_dtypes_say_what_is_written_and_computing_is_never_coarse() -> None:
    recipe = translate(config("linear", dtype="bfloat16")).recipe
    assert (recipe.dtype.compute, recipe.dtype.output) == ("float32", "bfloat16")
    recipe = translate(config("linear", dtype="float64", out_dtype="float16")).recipe
    assert (recipe.dtype.compute, recipe.dtype.output) == ("float64", "float16")
    assert translate(config("linear")).recipe.dtype.output == "input"


def test_the_tokenizer_is_the_bases_or_a_models() -> None:
    assert translate(config("linear", tokenizer_source="base")).recipe.tokenizer.source == "base"
    assert translate(config("linear", tokenizer_source="org/b")).recipe.tokenizer.source == "m1"
    assert translate(config("linear", tokenizer_source="org/base")).recipe.tokenizer.source == "base"


SLICE = {"sources": [{"model": "org/base", "layer_range": [0, 2]}, {"model": "org/a", "layer_range": [0, 2]}]}


@pytest.mark.parametrize(
    ("change", "pointer", "says"),
    [
        ({"merge_method": "tiess"}, "/merge_method", "did you mean ties?"),
        ({"slices": [SLICE]}, "/slices", "Exactly one"),
        ({"models": None}, "/models", "Exactly one"),
        ({"models": ["org/a", {"model": "org/b"}]}, "/models/0", "`- model: org/name`"),
        ({"models": [{"model": "org/a"}, None]}, "/models/1", "must be a mapping with a model"),
        (
            {"parameters": {"density": [{"filter": ["q_proj", "k_proj"], "value": 1}, {"value": 0.5}]}},
            "/parameters/density/0/filter",
            "must be text",
        ),
        ({"models": None, "slices": [{"sources": []}]}, "/slices/0", "list of sources"),
        (
            {"models": None, "slices": [{**SLICE, "residual_weight": 0.5}]},
            "/slices/0/residual_weight",
            "no effect",
        ),
        ({"models": None, "slices": [{**SLICE, "weight": 0.5}]}, "/slices/0/weight", "not a supported key"),
        (
            {"models": None, "slices": [{"sources": [{"model": "org/a", "layer_range": [2, 2]}]}]},
            "/slices/0/sources/0/layer_range",
            "[first, end]",
        ),
        (
            {"models": None, "slices": [{"sources": [{"model": "org/a"}]}]},
            "/slices/0/sources/0/layer_range",
            "two whole",
        ),
        (
            {"models": None, "slices": [{"sources": [{"model": "org/a", "layer_range": [0, 2]}]}]},
            "/slices/0",
            "must be among the sources",
        ),
        ({"models": None, "modules": {"decoder": {}}}, "/modules/decoder", "either models or slices"),
        (
            {"models": None, "modules": {"decoder": {"slices": [SLICE], "lr": 1}}},
            "/modules/decoder/lr",
            "not a supported",
        ),
        ({"base_mdel": "x"}, "/base_mdel", "did you mean base_model?"),
        ({"parameters": {"desnity": 1}}, "/parameters/desnity", "did you mean density?"),
        ({"parameters": {"rescael": True}}, "/parameters/rescael", "did you mean rescale?"),
        ({"parameters": {"lambda": "much"}}, "/parameters/lambda", "must be a number"),
        ({"parameters": {"normalize": 2}}, "/parameters/normalize", "true or false"),
        ({"parameters": {"lambda": "inf"}}, "/parameters/lambda", "must be a number"),
        (
            {"parameters": {"density": [{"filter": "x", "value": 1, "z": 2}]}},
            "/parameters/density/0",
            "nothing else",
        ),
        ({"parameters": []}, "/parameters", "mapping"),
        ({"models": []}, "/models", "Exactly one"),
        ({"models": [{"model": "a", "weight": 1}]}, "/models/0/weight", "not a supported key"),
        (
            {"models": [{"model": "a", "parameters": {"lambda": 1}}]},
            "/models/0/parameters/lambda",
            "whole merge",
        ),
        ({"models": [{"model": "a"}]}, "/parameters/weight", "needs a weight for a"),
        (
            {"models": [{"model": "a", "parameters": {"weight": {"filter": "x", "value": 1}}}]},
            "/parameters/weight",
            "no filter names",
        ),
        ({"models": [{"model": "a@b@c"}]}, "/models/0/model", "not a model reference"),
        ({"models": [{"model": "a+b+c"}]}, "/models/0/model", "more than one LoRA"),
        ({"models": [{"model": {"model": "a", "arch": "X"}}]}, "/models/0/model/arch", "not a supported key"),
        ({"models": [{"model": "org/a"}, {"model": "org/a"}]}, "/models/1", "named twice"),
        ({"models": [{"model": "org/base"}]}, "/models", "at least 1 model besides"),
        ({"base_model": None}, "/base_model", "needs a base_model"),
        ({"out_dtype": "int64"}, "/out_dtype", "not a supported out_dtype"),
        ({"tokenizer_source": "base", "tokenizer": {}}, "/tokenizer_source", "not both"),
        ({"tokenizer": {"sorce": "base"}}, "/tokenizer/sorce", "did you mean source?"),
        (
            {"tokenizer": {"tokens": {"<x>": {"source": "org/zzz"}}}},
            "/tokenizer/tokens/<x>/source",
            "not among the models",
        ),
        (
            {"tokenizer": {"tokens": {"<x>": {"source": {"kind": "one"}}}}},
            "/tokenizer/tokens/<x>/source/kind",
            "zero",
        ),
        (
            {"tokenizer": {"tokens": {"<x>": {"source": {"kind": "model_token", "model": "org/a"}}}}},
            "/tokenizer/tokens/<x>/source",
            "exactly one of token",
        ),
        ({"chat_template": "chatlm"}, "/chat_template", "did you mean chatml?"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_key(
    change: dict[str, Any], pointer: str, says: str
) -> None:
    with pytest.raises(MergekitUnsupported) as caught:
        translate({**config("ties"), **change})
    assert caught.value.findings[0].pointer == pointer
    assert says in caught.value.findings[0].message
