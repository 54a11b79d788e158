"""Slices put layers of several models into one, and everything around the layers where it belongs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.run import run
from tests.merge.planning.slices import (
    GIB,
    PER_LAYER,
    STACK,
    UP,
    document,
    mean,
    merged,
    part,
    planned,
    weights_of,
)


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
