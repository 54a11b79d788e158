"""Slices put layers of several models into one, and everything around the layers where it belongs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.errors import Finding, RecipeInvalid
from merge.plan import Plan, make_plan, plan_or_findings
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests.merge import exact
from tests.merge.arch import zoo

GIB = 1 << 30
PER_LAYER = {
    "self_attn.q_proj.weight": (16, 16), "mlp.up_proj.weight": (24, 16), "input_layernorm.weight": (16,),
}  # fmt: skip
OUTER = {"model.embed_tokens.weight": (20, 16), "model.norm.weight": (16,), "lm_head.weight": (20, 16)}
UP = "model.layers.{}.mlp.up_proj.weight"


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    inner = {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in PER_LAYER.items()}
    return {"model.embed_tokens.weight": OUTER["model.embed_tokens.weight"], **inner, **OUTER}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Models of four layers, ``deep`` of six; each in five files."""
    root = tmp_path_factory.mktemp("models")
    config = {"num_hidden_layers": 4, "layer_types": list("wxyz")}
    made = {
        name: exact.write(root / name, name, shapes(4), config=config, shards=5)
        for name in ("base", "a", "b")
    }
    deep = {"num_hidden_layers": 6, "layer_types": list("pqrstu")}
    return {**made, "deep": exact.write(root / "deep", "deep", shapes(6), config=deep, shards=5)}


def document(slices: list[dict[str, Any]], steps: Any = ("passthrough",), **more: Any) -> dict[str, Any]:
    sources = [{"id": name, "model": name} for name in ("a", "b", "deep")]
    return {"base": "base", "sources": sources, "steps": list(steps), "slices": slices, **more}


def part(*sources: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    return {"sources": [{"id": name, "layers": [first, end]} for name, first, end in sources], **more}


def planned(folders: Mapping[str, Path], found: dict[str, Any]) -> Plan:
    return make_plan(recipe_from(found), exact.indices(folders), budget=GIB)


def merged(
    folders: Mapping[str, Path], out: Path, found: dict[str, Any], **more: Any
) -> dict[str, torch.Tensor]:
    report = run(planned(folders, found), folders, out, budget_bytes=GIB, threads=1, survey="none", **more)
    files = [file.file for file in report.files if file.file.endswith(".safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(out / file).items()}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def errors(folders: Mapping[str, Path], found: dict[str, Any]) -> list[Finding]:
    plan, findings = plan_or_findings(recipe_from(found), exact.indices(folders), budget=GIB)
    assert plan is None
    return [finding for finding in findings if finding.severity == "error"]


def mean(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.stack([tensor.float() for tensor in tensors]).mean(dim=0).to(torch.bfloat16)


STACK = [part(("a", 0, 3)), part(("b", 1, 4)), part(("a", 2, 4))]


def test_stacked_layers_are_copied_byte_for_byte_from_where_they_come(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    made = merged(folders, tmp_path / "out", document(STACK))
    a, b = weights_of(folders["a"]), weights_of(folders["b"])
    origins = [(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3), (a, 2), (a, 3)]
    for layer, (model, own) in enumerate(origins):
        for name in PER_LAYER:
            assert torch.equal(made[f"model.layers.{layer}.{name}"], model[f"model.layers.{own}.{name}"])
    assert len(made) == 8 * len(PER_LAYER) + 3


def test_what_lies_before_the_layers_is_the_first_slices_and_after_them_the_lasts(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    made = merged(folders, tmp_path / "out", document([part(("a", 0, 2)), part(("b", 2, 4))]))
    a, b = weights_of(folders["a"]), weights_of(folders["b"])
    assert torch.equal(made["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(made["model.norm.weight"], b["model.norm.weight"])
    assert torch.equal(made["lm_head.weight"], b["lm_head.weight"])


def test_the_config_counts_the_layers_and_each_keeps_its_own_kind(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    merged(folders, tmp_path / "out", document([part(("a", 1, 3)), part(("deep", 3, 6)), part(("a", 0, 1))]))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"] == ["x", "y", "s", "t", "u", "w"]


def test_several_sources_of_a_slice_are_merged_layer_by_layer(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    slices = [part(("a", 0, 2), ("deep", 3, 5)), part(("b", 2, 4), ("deep", 0, 2))]
    made = merged(folders, tmp_path / "out", document(slices, ["linear"]))
    a, b, deep = (weights_of(folders[name]) for name in ("a", "b", "deep"))
    pairs = [(a, 0, 3), (a, 1, 4), (b, 2, 0), (b, 3, 1)]
    for layer, (model, own, other) in enumerate(pairs):
        expected = mean(model[UP.format(own)], deep[UP.format(other)])
        assert torch.equal(made[UP.format(layer)], expected)
    assert torch.equal(made["lm_head.weight"], mean(b["lm_head.weight"], deep["lm_head.weight"]))


@pytest.mark.parametrize(("chosen", "own"), [({}, 2), ({"base_layers": [0, 2]}, 0)])
def test_differences_are_taken_from_the_layers_of_the_base_that_are_asked_for(
    folders: Mapping[str, Path], tmp_path: Path, chosen: dict[str, Any], own: int
) -> None:
    slices = [part(("a", 0, 2)), part(("deep", 2, 4), **chosen)]
    made = merged(folders, tmp_path / "out", document(slices, [{"method": "task_arithmetic", "scale": 0.5}]))
    base, deep = weights_of(folders["base"])[UP.format(own)], weights_of(folders["deep"])[UP.format(2)]
    expected = base.float() + 0.5 * (deep.float() - base.float())
    assert torch.equal(made[UP.format(2)], expected.to(torch.bfloat16))


def test_a_slice_may_have_a_base_of_its_own(folders: Mapping[str, Path], tmp_path: Path) -> None:
    slices = [part(("a", 0, 2), base="b"), part(("a", 2, 4))]
    found = document(slices, [{"method": "task_arithmetic", "scale": 0.5}])
    made = merged(folders, tmp_path / "out", found)
    expected = mean(*(weights_of(folders[name])[UP.format(1)] for name in "ab"))
    assert torch.equal(made[UP.format(1)], expected)
    assert torch.equal(
        made[UP.format(3)], mean(*(weights_of(folders[name])[UP.format(3)] for name in ("a", "base")))
    )


def test_weights_and_settings_of_a_slice_win_over_the_sources_and_the_steps(
    folders: Mapping[str, Path],
) -> None:
    first = {"sources": [{"id": "a", "layers": [0, 2], "weight": 3}, {"id": "b", "layers": [0, 2]}]}
    second = {
        "sources": [
            {"id": "a", "layers": [2, 4], "settings": {"density": 0.1}},
            {"id": "b", "layers": [2, 4]},
        ],
        "settings": {"density": 0.2, "scale": 5},
    }
    plan = planned(folders, document([first, second], [{"method": "ties", "density": 0.7, "scale": 2}]))
    found = {output.name: output for output in plan.outputs}
    assert found[UP.format(0)].weights == (3.0, 1.0) and found[UP.format(2)].weights == (1.0, 1.0)
    assert found[UP.format(0)].settings[0] == {"density": 0.7, "scale": 2}
    assert found[UP.format(2)].settings[0] == {"density": (0.1, 0.2), "scale": 5}
    assert found["model.embed_tokens.weight"].weights == (3.0, 1.0)
    assert found["lm_head.weight"].settings[0]["scale"] == 5


def test_overrides_of_a_slice_speak_to_its_tensors_only_and_come_last(folders: Mapping[str, Path]) -> None:
    quiet = [{"match": "*.up_proj.*", "settings": {"scale": 0}}]
    found = document(
        [part(("a", 0, 2)), part(("a", 1, 3), overrides=quiet)],
        overrides=[{"match": "*.weight", "settings": {"scale": 2}}],
    )
    scales = {o.name: o.settings[0]["scale"] for o in planned(folders, found).outputs}
    assert [scales[UP.format(layer)] for layer in range(4)] == [2, 2, 0, 0]
    assert scales["model.layers.3.self_attn.q_proj.weight"] == 2


def test_an_override_of_one_source_is_matched_against_that_sources_own_layers(
    folders: Mapping[str, Path],
) -> None:
    found = document(
        [part(("a", 0, 2), ("b", 2, 4))],
        ["linear"],
        overrides=[{"match": "layer:3", "source": "b", "settings": {"weight": 9}}],
    )
    weights = {output.name: output.weights for output in planned(folders, found).outputs}
    assert [weights[UP.format(layer)] for layer in (0, 1)] == [(1.0, 1.0), (1.0, 9.0)]


def test_a_depth_curve_runs_over_the_layers_of_its_slice(folders: Mapping[str, Path]) -> None:
    slices = [part(("deep", 0, 3)), part(("deep", 5, 6)), part(("deep", 0, 2))]
    found = document(slices, [{"method": "passthrough", "scale": [0.0, 1.0]}], outer_depth="zero")
    scales = {o.name: o.settings[0]["scale"] for o in planned(folders, found).outputs}
    assert [scales[UP.format(layer)] for layer in range(6)] == [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    assert scales["model.embed_tokens.weight"] == scales["lm_head.weight"] == 0.0


def test_one_model_twice_in_a_slice_is_masked_by_draws_of_its_own(folders: Mapping[str, Path]) -> None:
    dare = [{"method": "dare", "density": 0.5}, "task_arithmetic"]
    plan = planned(folders, document([part(("a", 0, 2), ("a", 1, 3), ("a", 0, 2))], dare))
    found = {output.name: output.source_names() for output in plan.outputs}
    assert found[UP.format(0)] == ("a", f"a:{UP.format(1)}", "a#1")
    assert found["lm_head.weight"] == ("a", "a#1", "a#2")


def test_a_step_over_the_whole_model_goes_by_sources_and_not_by_their_places(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    steps = [{"method": "trim", "density": 0.3, "scope": "global"}, {"method": "task_arithmetic"}]
    turned = [part(("a", 0, 2), ("b", 0, 2)), part(("b", 2, 4), ("a", 2, 4))]
    straight = [part(("a", 0, 4), ("b", 0, 4))]
    unlike = {**folders, "base": folders["a"]}
    one, other = (
        merged(unlike, tmp_path / str(number), document(slices, steps))
        for number, slices in enumerate((turned, straight))
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_only_files_that_hold_a_needed_layer_are_asked_for_and_read(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    found = document([part(("a", 0, 3)), part(("deep", 5, 6))])
    plan = planned(folders, found)
    assert 0 < len(plan.weight_files("deep")) < 5 and plan.weight_files("b") == ()
    whole = planned(folders, document([part(("a", 0, 4))])).estimate.download_bytes
    assert plan.estimate.download_bytes < whole + plan.models["deep"].bytes
    partly = {**folders, "deep": tmp_path / "deep"}
    partly["deep"].mkdir()
    for name in plan.weight_files("deep"):
        (partly["deep"] / name).write_bytes((folders["deep"] / name).read_bytes())
    made = tmp_path / "out"
    run(plan, {key: partly[key] for key in ("a", "deep")}, made, budget_bytes=GIB, threads=1, survey="none")
    assert (made / "config.json").is_file()


@pytest.mark.parametrize(
    ("slices", "code", "pointer", "says"),
    [
        ([part(("a", 0, 2)), part(("b", 2, 5))], "layers_out_of_range", "/slices/1/sources/0/layers",
         "b has 4 layers"),
        ([part(("a", 0, 2), ("b", 1, 4))], "layers_differ", "/slices/0/sources/1/layers", "b gives 3"),
        ([part(("deep", 4, 6))], "layers_out_of_range", "/slices/0/base", "base has 4 layers"),
        ([part(("a", 0, 2), base_layers=[0, 3])], "layers_differ", "/slices/0/base_layers", "base gives 3"),
    ],
)  # fmt: skip
def test_a_bad_range_is_told_with_its_slice_and_field(
    folders: Mapping[str, Path], slices: list[dict[str, Any]], code: str, pointer: str, says: str
) -> None:
    found = errors(folders, document(slices, ["task_arithmetic"]))
    assert [(each.code, each.pointer) for each in found] == [(code, pointer)]
    assert says in found[0].message


@pytest.mark.parametrize(
    ("slices", "pointer", "says"),
    [
        ([part(("zzz", 0, 2))], "/slices/0/sources/0/id", "no source 'zzz'"),
        ([part(("a", 0, 2), base="zzz")], "/slices/0/base", "no source 'zzz'"),
        ([part(("a", 3, 3))], "/slices/0/sources/0/layers", "[first, end]"),
        ([{"sources": [{"id": "a", "layers": [0]}]}], "/slices/0/sources/0/layers", "[first, end]"),
        ([{"sources": [{"id": "a"}]}, part(("a", 0, 1))], "/slices/0/sources/0/layers", "needs layers"),
        ([part(("a", 0, 2), layer_range=3)], "/slices/0/layer_range", "did you mean"),
        ([part(("a", 0, 2), overrides=[{"match": "x", "source": "c", "policy": "mean"}])],
         "/slices/0/overrides/0/source", "no source 'c'"),
    ],
)  # fmt: skip
def test_a_malformed_slice_is_refused_where_it_stands(
    slices: list[dict[str, Any]], pointer: str, says: str
) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        recipe_from(document(slices))
    assert caught.value.findings[0].pointer == pointer
    assert says in caught.value.findings[0].message


def test_every_slice_must_suit_the_method(folders: Mapping[str, Path]) -> None:
    found = errors(
        folders, document([part(("a", 0, 2), ("b", 0, 2)), part(("a", 2, 4))], [{"method": "slerp"}])
    )
    assert [(each.code, each.pointer) for each in found] == [("source_count", "/slices/1/sources")]


def test_a_source_in_no_slice_is_remarked(folders: Mapping[str, Path]) -> None:
    plan = planned(folders, document(STACK))
    assert [f.model for f in plan.findings if f.code == "source_unused"] == ["deep"]


def test_a_policy_that_names_a_model_of_another_slice_is_refused(folders: Mapping[str, Path]) -> None:
    rules = [{"match": "model.layers.*", "policy": "source:b"}]
    found = errors(folders, document([part(("a", 0, 1)), part(("b", 1, 2))], overrides=rules))
    assert {each.tensor for each in found} == {f"model.layers.0.{name}" for name in PER_LAYER}
    assert {each.code for each in found} == {"policy_model_absent"}


def test_a_tensor_that_one_layer_has_more_than_the_others_is_told(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    extra = {"model.layers.3.self_attn.q_norm.weight": torch.ones(4, dtype=torch.bfloat16)}
    odd = {
        **folders,
        "b": exact.write(tmp_path / "b", "b", shapes(4), extra=extra, config={"num_hidden_layers": 4}),
    }
    found = errors(odd, document([part(("a", 0, 2), ("b", 2, 4))], ["linear"]))
    assert [(each.code, each.model, each.tensor) for each in found] == [
        ("extra_tensor", "b", "model.layers.3.self_attn.q_norm.weight")
    ]


def test_a_config_that_counts_no_layers_is_told_before_anything_is_read(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    silent = {**folders, "a": exact.write(tmp_path / "a", "a", shapes(4), config={"layer_types": []})}
    assert [each.code for each in errors(silent, document(STACK))] == ["layer_count_unstated"]


def stacked(name: str, slices: dict[str, Any], tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    zoo.save(name, 1, tmp_path / "a")
    found = {"sources": [{"id": "a", "model": "a"}], "steps": ["passthrough"], **slices}
    folders = {"a": tmp_path / "a"}
    run(planned(folders, found), folders, tmp_path / "out", budget_bytes=GIB, threads=1, survey="none")
    return zoo.load(name, tmp_path / "out")


GROWN = [part(("a", 0, 2)), part(("a", 1, 3))]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral", "bert"])
def test_transformers_loads_a_stacked_model(name: str, tmp_path: Path) -> None:
    model, told = stacked(name, {"slices": GROWN}, tmp_path)
    assert not any(told.values())
    assert model.config.num_hidden_layers == 4
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


@pytest.mark.parametrize(
    ("name", "tower", "count"),
    [
        ("t5", "decoder.block", lambda c: (c.num_layers, c.num_decoder_layers) == (3, 4)),
        ("t5", "encoder.block", lambda c: (c.num_layers, c.num_decoder_layers) == (4, 3)),
        ("gemma3", "language_model.model.layers", lambda c: len(c.text_config.layer_types) == 4),
        ("gemma3", "vision_tower.encoder.layers", lambda c: c.vision_config.num_hidden_layers == 4),
        ("whisper", "model.encoder.layers", lambda c: (c.encoder_layers, c.decoder_layers) == (4, 3)),
    ],
)
def test_one_of_several_towers_is_cut_and_the_others_stay(
    name: str, tower: str, count: Any, tmp_path: Path
) -> None:
    modules = {"tower": {"tensors": [f"{tower}.*"], "slices": GROWN}}
    model, told = stacked(name, {"modules": modules}, tmp_path)
    assert not any(told.values())
    assert count(model.config)


def test_slices_of_a_model_with_two_towers_must_say_which(tmp_path: Path) -> None:
    zoo.save("t5", 1, tmp_path / "a")
    found = {"sources": [{"id": "a", "model": "a"}], "steps": ["passthrough"], "slices": GROWN}
    (told,) = errors({"a": tmp_path / "a"}, found)
    assert (told.code, told.pointer) == ("layers_unclear", "/slices")
    assert "decoder.block, encoder.block" in told.message


def test_what_ranks_over_the_model_ranks_tensors_of_the_same_sources_together(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    slices = [part(("a", 0, 2)), part(("b", 2, 4), ("a", 2, 4), ("deep", 0, 2))]
    steps = [{"method": "ties", "density": 0.25, "scope": "global"}]
    made = merged(folders, tmp_path / "out", document(slices, steps, dtype={"output": "float32"}))
    base, a = (weights_of(folders[name]) for name in ("base", "a"))
    ranked = [name for name in base if "embed" in name or ".layers.0." in name or ".layers.1." in name]
    deltas = {name: a[name].float() - base[name].float() for name in ranked}
    sizes = torch.cat([delta.abs().flatten() for delta in deltas.values()]).sort(descending=True).values
    for name, delta in deltas.items():
        expected = base[name].float() + delta * (delta.abs() >= sizes[len(sizes) // 4 - 1])
        assert torch.allclose(made[name], expected)


@pytest.mark.parametrize("step", [{"method": "opcm"}, {"method": "pcb"}])
def test_numbers_of_the_whole_model_are_told_of_slices_with_more_and_fewer_sources(
    folders: Mapping[str, Path], tmp_path: Path, step: dict[str, Any]
) -> None:
    slices = [part(("a", 0, 2), ("deep", 2, 4)), part(("b", 2, 4))]
    made = merged(folders, tmp_path / "out", document(slices, [step], dtype={"output": "float32"}))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in made.values())


def test_modules_have_sources_of_their_own_and_what_none_claims_has_all(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    modules = {
        "outer": {"tensors": ["lm_head.*", "*embed_tokens*"], "slices": [{"sources": [{"id": "b"}]}]},
        "layers": {"tensors": ["model.layers.*"], "slices": [part(("a", 0, 2))]},
    }
    sources = [{"id": name, "model": name} for name in "ab"]
    found = {"sources": sources, "steps": ["linear"], "modules": modules}
    made = merged(folders, tmp_path / "out", found)
    a, b = weights_of(folders["a"]), weights_of(folders["b"])
    assert torch.equal(made["lm_head.weight"], b["lm_head.weight"])
    assert torch.equal(made[UP.format(1)], a[UP.format(1)]) and UP.format(2) not in made
    assert torch.equal(made["model.norm.weight"], mean(a["model.norm.weight"], b["model.norm.weight"]))


def test_a_module_that_no_tensor_belongs_to_is_refused(folders: Mapping[str, Path]) -> None:
    modules = {"visual": {"tensors": ["visual.*"], "slices": [{"sources": [{"id": "a"}]}]}}
    found = {"sources": [{"id": "a", "model": "a"}], "steps": ["passthrough"], "modules": modules}
    assert [(each.code, each.pointer) for each in errors(folders, found)] == [
        ("module_empty", "/modules/visual/tensors")
    ]
