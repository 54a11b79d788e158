import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex, attach, index_adapter_folder, index_folder
from merge.errors import Finding, PlanRefused
from merge.plan import Plan, make_plan, plan_or_findings
from merge.planning.estimate import demand_of
from merge.recipe.recipe import recipe_from
from tests import tiny
from tests.merge import exact

GIB = 1 << 30


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ModelIndex]:
    return exact.indices(exact.family(tmp_path_factory.mktemp("models")))


def document(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    sources = [{"id": name, "model": name} for name in "abc"]
    return {"base": "base", "sources": sources, "steps": list(steps)} | more


def plan_of(models: Mapping[str, ModelIndex], *steps: dict[str, Any], **more: Any) -> Plan:
    return make_plan(recipe_from(document(*steps, **more)), models, budget=GIB)


def refused(
    models: Mapping[str, ModelIndex], *steps: dict[str, Any], budget: int = GIB, **more: Any
) -> list[Finding]:
    recipe = recipe_from(document(*steps or ({"method": "linear"},), **more))
    plan, findings = plan_or_findings(recipe, models, budget=budget)
    assert plan is None
    return [finding for finding in findings if finding.severity == "error"]


TIES = {"method": "ties"}


def test_outputs_follow_the_base_in_name_shape_and_dtype(models: Mapping[str, ModelIndex]) -> None:
    plan = plan_of(models, TIES)
    assert {o.name: o.shape for o in plan.outputs} == dict(exact.SHAPES)
    assert {o.dtype for o in plan.outputs} == {"BF16"}
    assert plan.estimate.output_bytes == sum(shard.size for shard in plan.shards)
    assert plan.estimate.download_bytes == 4 * models["a"].bytes


@pytest.mark.parametrize(
    ("match", "used"),
    [("*.mlp.*", True), ("class:norm", True), ("layer:1", True), ("*.mlpp.*", False), ("layer:7", False)],
)
def test_an_override_that_fits_no_tensor_is_told(
    models: Mapping[str, ModelIndex], match: str, used: bool
) -> None:
    plan = plan_of(models, TIES, overrides=[{"match": match, "policy": "mean"}])
    told = [(each.pointer, each.severity) for each in plan.findings if each.code == "override_unused"]
    assert told == ([] if used else [("/overrides/0/match", "warning")])


def test_an_optional_base_is_read_where_the_recipe_names_one(models: Mapping[str, ModelIndex]) -> None:
    step = {"method": "multislerp"}
    assert plan_of(models, step).outputs[0].base is not None
    without = plan_of(models, step, base=None)
    assert without.outputs[0].base is None
    assert without.reference == "a"
    assert plan_of(models, {"method": "karcher"}).outputs[0].base is None


def test_what_always_divides_by_the_weights_refuses_a_sum_of_zero(models: Mapping[str, ModelIndex]) -> None:
    sources = [{"id": "a", "model": "a", "weight": 1}, {"id": "b", "model": "b", "weight": -1}]
    finding = refused(models, {"method": "nuslerp"}, sources=sources)[0]
    assert finding.code == "weights_sum_to_zero"
    assert "nuslerp would divide" in finding.message


def test_output_dtype_can_be_chosen(models: Mapping[str, ModelIndex]) -> None:
    assert {o.dtype for o in plan_of(models, TIES, dtype={"output": "float32"}).outputs} == {"F32"}


@pytest.mark.parametrize(
    ("step", "code", "pointer", "words"),
    [
        ({"method": "tiess"}, "unknown_method", "/steps/0/method", "did you mean 'ties'"),
        ({"method": "dare-ties"}, "unknown_method", "/steps/0/method", "did you mean 'dare_ties'"),
        ({"method": "ties", "desnity": 0.5}, "setting_unknown", "/steps/0/desnity", "did you mean 'density'"),
        ({"method": "ties", "density": 1.5}, "setting_invalid", "/steps/0/density", "at most 1"),
        ({"method": "ties", "density": [0.1, 0]}, "setting_invalid", "/steps/0/density", "above 0"),
        ({"method": "ties", "scope": ["tensor", "global"]}, "setting_invalid", "/steps/0/scope", "one of"),
        ({"method": "slerp"}, "source_count", "/steps/0", "exactly 2 sources, not 3"),
        ({"method": "dare"}, "chain_invalid", "/steps", "one combine"),
    ],
    ids=str,
)
def test_a_wrong_step_is_refused_where_it_stands(
    models: Mapping[str, ModelIndex], step: dict[str, Any], code: str, pointer: str, words: str
) -> None:
    (found,) = refused(models, step)
    assert (found.code, found.pointer) == (code, pointer)
    assert words in found.message


def test_a_combine_before_a_prepare_is_refused(models: Mapping[str, ModelIndex]) -> None:
    assert [f.code for f in refused(models, TIES, {"method": "dare"})] == ["chain_invalid"]


def test_settings_that_sources_may_not_set_are_refused(models: Mapping[str, ModelIndex]) -> None:
    sources = [{"model": "a", "settings": {"scale": 2.0}}, {"model": "b", "settings": {"density": 0.1}}]
    named = {"m0": models["a"], "m1": models["b"], "base": models["base"]}
    (found,) = refused(named, TIES, sources=sources)
    assert (found.code, found.pointer) == ("setting_not_by_source", "/sources/0/settings/scale")


def test_a_base_that_is_needed_must_be_named(models: Mapping[str, ModelIndex]) -> None:
    assert [f.code for f in refused(models, TIES, base=None)] == ["base_missing"]


def test_weights_that_cancel_are_refused(models: Mapping[str, ModelIndex]) -> None:
    sources = [{"id": "a", "model": "a", "weight": 1}, {"id": "b", "model": "b", "weight": -1}]
    (found,) = refused(models, {"method": "linear"}, sources=sources)
    assert found.code == "weights_sum_to_zero"


def test_weights_that_cancel_are_refused_where_an_override_divides_by_them(
    models: Mapping[str, ModelIndex],
) -> None:
    sources = [{"id": "a", "model": "a", "weight": 1}, {"id": "b", "model": "b", "weight": -1}]
    step, divided = {"method": "task_arithmetic"}, [{"match": "class:norm", "settings": {"normalize": True}}]
    assert plan_of(models, step, sources=sources).outputs
    (found,) = refused(models, step, sources=sources, overrides=divided)
    assert found.code == "weights_sum_to_zero" and "norm" in str(found.tensor)


def test_a_global_threshold_needs_one_density(models: Mapping[str, ModelIndex]) -> None:
    (found,) = refused(models, {"method": "ties", "scope": "global", "density": [0.1, 0.9]})
    assert (found.code, found.pointer) == ("global_setting_varies", "/steps/0/density")
    usual = [{"match": "class:norm", "settings": {"density": 0.2}}]
    assert plan_of(models, {"method": "ties", "scope": "global"}, overrides=usual).outputs


def changed(models: Mapping[str, ModelIndex], tmp_path: Path, **options: Any) -> dict[str, ModelIndex]:
    """The family with another model in the place of b."""
    folder = exact.write(tmp_path / "other", "b", **options)
    return dict(models) | exact.indices({"b": folder})


NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("options", "code", "tensor"),
    [
        ({"shapes": {k: v for k, v in exact.SHAPES.items() if k != NORM}}, "missing_tensor", NORM),
        ({"shapes": {**exact.SHAPES, "model.more.weight": (2, 2)}}, "extra_tensor", "model.more.weight"),
        ({"shapes": {**exact.SHAPES, NORM: (127,)}}, "shape_mismatch", NORM),
        ({"shapes": {**exact.SHAPES, EMBED: (702, 128)}}, "vocabulary_mismatch", EMBED),
        ({"extra": {NORM: torch.ones(128, dtype=torch.int64)}}, "dtype_mismatch", NORM),
        ({"extra": {NORM: torch.ones(128).to(torch.complex64)}}, "dtype_unsupported", NORM),
        ({"config": {"model_type": "mistral"}}, "architecture_mismatch", None),
        ({"config": {"tie_word_embeddings": True}}, "tied_embeddings_differ", None),
        ({"config": {"quantization_config": {"quant_method": "gptq"}}}, "quantized", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_that_do_not_fit_are_refused_by_name(
    models: Mapping[str, ModelIndex], tmp_path: Path, options: dict[str, Any], code: str, tensor: str | None
) -> None:
    (found,) = refused(changed(models, tmp_path, **options))
    assert (found.code, found.model, found.tensor) == (code, "b", tensor)
    assert "b" in found.message


def test_every_mistake_is_told_at_once(models: Mapping[str, ModelIndex], tmp_path: Path) -> None:
    shapes = {**exact.SHAPES, NORM: (5,), EMBED: (9, 128)}
    assert {f.code for f in refused(changed(models, tmp_path, shapes=shapes))} == {
        "shape_mismatch",
        "vocabulary_mismatch",
    }


def test_models_of_different_sizes_are_told_before_their_tensors(
    models: Mapping[str, ModelIndex], tmp_path: Path
) -> None:
    wide = {name: tuple(2 * side for side in shape) for name, shape in exact.SHAPES.items()}
    other = changed(models, tmp_path, shapes=wide, config={"hidden_size": 256}) | exact.indices(
        {"base": exact.write(tmp_path / "base", "base", config={"hidden_size": 128})}
    )
    first, *rest = refused(other, TIES)
    assert (first.code, first.model) == ("sizes_differ", "b")
    assert "(hidden_size 256 against 128)" in first.message
    assert "shape_mismatch" in {each.code for each in rest}


@pytest.mark.parametrize("missing", ["error", "fill"])
def test_experts_in_one_tensor_beside_numbered_ones_are_refused_as_that(
    models: Mapping[str, ModelIndex], tmp_path: Path, missing: str
) -> None:
    """Some versions of Transformers save them so, some so: filled, a model was merged without its experts."""
    layer, gate = "model.layers.0.mlp.experts", (2, 128)
    numbered = {f"{layer}.{number}.gate_proj.weight": gate for number in range(2)}
    other = changed(models, tmp_path, shapes={**exact.SHAPES, f"{layer}.gate_up_proj": (2, *gate)})
    base = exact.write(tmp_path / "base", "base", shapes={**exact.SHAPES, **numbered})
    first, *_ = refused(other | exact.indices({"base": base}), TIES, missing=missing)
    assert (first.code, first.model) == ("experts_differ", "b")
    assert "b has the experts of a layer in one tensor, base in a tensor for each" in first.message


def test_a_flood_of_findings_is_counted(models: Mapping[str, ModelIndex], tmp_path: Path) -> None:
    many = {f"model.layers.{i}.mlp.x.weight": (1, 1) for i in range(100)}
    found = refused(changed(models, tmp_path, shapes={**exact.SHAPES, **many}))
    assert len(found) == 21
    assert "80 more" in found[-1].message


def test_an_override_takes_over_a_tensor_that_only_one_source_has(
    models: Mapping[str, ModelIndex], tmp_path: Path
) -> None:
    shapes = {**exact.SHAPES, "model.more.weight": (2, 2)}
    overrides = [{"match": "model.more.*", "policy": "source:b"}]
    plan = plan_of(changed(models, tmp_path, shapes=shapes), TIES, overrides=overrides)
    assert plan.outputs[-1].name == "model.more.weight"


def test_other_dtypes_and_configs_are_only_warned_of(
    models: Mapping[str, ModelIndex], tmp_path: Path
) -> None:
    other = changed(
        models, tmp_path, dtype=torch.float32, config={"rms_norm_eps": 1e-6, "architectures": ["Other"]}
    )
    other = other | exact.indices(
        {"base": exact.write(tmp_path / "base", "base", config={"rms_norm_eps": 1e-5})}
    )
    codes = {finding.code for finding in plan_of(other, TIES).findings}
    assert codes == {"dtype_differs", "config_differs", "architecture_differs"}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"rope_theta": 1e4}, ""),
        ({"rope_theta": 1e6}, "rope_theta 1000000.0 against 10000.0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_theta 1000000.0 against"),
        ({"text_config": {"rope_parameters": {"rope_theta": 5e5}}}, "rope_theta 500000.0 against 10000.0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type linear against default"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}, ""),
    ],
    ids=str,
)
def test_positions_that_are_told_otherwise_are_warned_of(
    models: Mapping[str, ModelIndex], tmp_path: Path, own: dict[str, Any], told: str
) -> None:
    """By whichever field: Transformers 5 writes the base of their turning elsewhere, Llama 2 has none."""
    for number, said in enumerate(({"rope_parameters": {"rope_theta": 1e4}}, {})):
        base = exact.write(tmp_path / f"base{number}", "base", config=said)
        other = changed(models, tmp_path, config=own) | exact.indices({"base": base})
        found = [each.message for each in plan_of(other, TIES).findings if each.code == "config_differs"]
        assert [told in message for message in found] == ([True] if told else [])


@pytest.mark.parametrize(("trained", "told"), [("up/base", []), ("up/base-instruct", ["a"]), (None, [])])
def test_an_adapter_on_another_model_than_its_own_is_told(
    tmp_path: Path, trained: str | None, told: list[str]
) -> None:
    """The shapes of a sibling fit as well."""
    base = tiny.llama(tmp_path / "base")
    own = tiny.lora(
        tmp_path / "lora", {"model.layers.0.mlp.up_proj": (32, 16)}, base_model_name_or_path=trained
    )
    model = index_folder(base, "org/base@1a2b")
    models = {"base": model, "a": attach(model, index_adapter_folder(own, "org/lora"))}
    recipe = recipe_from({"base": "base", "sources": [{"id": "a", "adapter": "lora"}], "steps": [TIES]})
    findings = make_plan(recipe, models, budget=GIB).findings
    assert [each.model for each in findings if each.code == "adapter_base_differs"] == told


def test_a_tied_head_stored_twice_is_one_decision(tmp_path: Path) -> None:
    tied = exact.indices(exact.family(tmp_path, config={"tie_word_embeddings": True}))
    plan = plan_of(tied, TIES)
    assert "lm_head.weight" not in {o.name for o in plan.outputs}
    assert [finding.code for finding in plan.findings] == ["tied_tensor"]


def test_a_tied_head_that_only_one_source_stores_is_no_tensor_of_its_own(tmp_path: Path) -> None:
    folders = {name: tiny.llama(tmp_path / name, tied=True, expert=at) for at, name in enumerate("ab")}
    stored = load_file(folders["b"] / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, folders["b"] / "model.safetensors")
    recipe = recipe_from({"sources": [{"id": name, "model": name} for name in "ab"], "steps": ["linear"]})
    plan = make_plan(recipe, exact.indices(folders), budget=GIB)
    assert "lm_head.weight" not in {output.name for output in plan.outputs}


def test_classes_and_overrides_choose_policies(models: Mapping[str, ModelIndex]) -> None:
    overrides = [
        {"match": "*.1.mlp.*", "policy": "source:c"},
        {"match": "layer:0", "settings": {"density": 0.9}},
    ]
    plan = plan_of(models, TIES, classes={"norm": "mean", "head": "base"}, overrides=overrides)
    chosen = {o.name: o.policy for o in plan.outputs}
    assert chosen["model.norm.weight"] == "mean"
    assert chosen["lm_head.weight"] == "base"
    assert chosen["model.layers.1.mlp.up_proj.weight"] == "source:c"
    densities = {o.name: o.settings[0].get("density") for o in plan.outputs}
    assert densities["model.layers.0.mlp.up_proj.weight"] == 0.9
    assert densities["model.layers.1.self_attn.q_proj.weight"] is None


def test_policy_error_stops_at_the_class(models: Mapping[str, ModelIndex]) -> None:
    found = refused(models, TIES, classes={"norm": "error"})
    assert {finding.code for finding in found} == {"policy_error"}


def test_summary_shows_effective_settings_and_is_plain_json(models: Mapping[str, ModelIndex]) -> None:
    summary = plan_of(models, {"method": "ties", "density": [0.2, 0.6]}).summary()
    assert json.loads(json.dumps(summary)) == summary
    linear = next(row for row in summary["classes"] if row["class"] == "linear")
    shown = linear["steps"][0]["settings"]
    assert shown["density"] == {"from": 0.2, "to": 0.6}
    assert shown["scope"] == "tensor"
    assert summary["counts"]["tensors"] == exact.TENSORS


def test_summary_tells_the_least_and_the_greatest_of_whole_numbers_and_others(
    models: Mapping[str, ModelIndex],
) -> None:
    overrides = [{"match": "*.1.*", "settings": {"scale": 1}}]
    summary = plan_of(models, {"method": "ties", "scale": 1.5}, overrides=overrides).summary()
    linear = next(row for row in summary["classes"] if row["class"] == "linear")
    assert linear["steps"][0]["settings"]["scale"] == {"from": 1, "to": 1.5}


def test_too_little_memory_or_disk_is_refused(models: Mapping[str, ModelIndex]) -> None:
    assert [f.code for f in refused(models, budget=1 << 20)] == ["budget_too_small"]
    recipe = recipe_from(document(TIES))
    _, findings = plan_or_findings(recipe, models, budget=GIB, scratch_free=1000)
    assert [finding.code for finding in findings] == ["disk_too_small"]


def test_digest_follows_recipe_and_inputs(models: Mapping[str, ModelIndex], tmp_path: Path) -> None:
    first, again = plan_of(models, TIES), plan_of(models, TIES)
    assert first.digest == again.digest
    assert plan_of(models, TIES, seed=1).digest != first.digest
    assert plan_of(changed(models, tmp_path, config={"x": 1}), TIES).digest != first.digest


def test_make_plan_raises_with_every_finding(models: Mapping[str, ModelIndex]) -> None:
    with pytest.raises(PlanRefused) as caught:
        plan_of(models, {"method": "ties", "density": 0, "scale": "much"})
    assert {finding.pointer for finding in caught.value.findings} == {"/steps/0/density", "/steps/0/scale"}


def test_twenty_thousand_tensors_are_planned_in_seconds() -> None:
    names = [f"model.layers.{i % 48}.mlp.experts.{i // 48}.up_proj.weight" for i in range(20_000)]
    tensors = {
        n: TensorInfo(n, "BF16", (4, 4), "model.safetensors", 32 * i, 32 * i + 32)
        for i, n in enumerate(names)
    }
    models = {
        key: ModelIndex(key, tensors, {}, None, {"model.safetensors": 0}, key)
        for key in ("base", "a", "b", "c")
    }
    begin = time.process_time()
    plan = plan_of(
        models, {"method": "ties", "density": [0.1, 0.5]}, overrides=[{"match": "*.3.*", "policy": "mean"}]
    )
    assert len(plan.outputs) == 20_000
    assert time.process_time() - begin < 5, "about one second is usual"


def test_planning_loads_no_torch() -> None:
    code = "import sys, merge.plan, merge.catalog, merge.mergekit.translate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("granularity", "entries"), [("element", 1), ("row", 70_001), ("tensor", 200_000)])
def test_a_vector_is_one_row_and_stays_together(tmp_path: Path, granularity: str, entries: int) -> None:
    shapes = {"vector.weight": (70_001,), "wide.weight": (5, 40_000), "scalar.weight": ()}
    plan = plan_of(exact.indices(exact.family(tmp_path, shapes=shapes)), {"method": "linear"})
    steps = [replace(plan.steps[0], granularity=granularity)]
    assert demand_of(plan.recipe, plan.models, plan.outputs, steps).whole == entries
