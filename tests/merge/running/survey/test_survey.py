"""The merge report: its numbers are those of whole tensors in float64, whatever the blocks and threads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.errors import Stopped
from merge.plan import make_plan
from merge.planning.output_tensor import Input, OutputTensor
from merge.recipe.recipe import recipe_from
from merge.report import ShardDone
from merge.run import run
from merge.running.survey.measure import PIECES_SAMPLED, SAMPLE_ENTRIES
from merge.running.survey.page import render_page
from merge.running.survey.summary import Measured, summarise
from tests.merge import exact, informed

BUDGET = 96 << 20


def report(folders: Mapping[str, Path], out: Path, steps: list[Any], **more: Any) -> dict[str, Any]:
    document = {
        "base": "base",
        "sources": [{"id": name, "model": name} for name in "ab"],
        "steps": steps,
        "shard_bytes": 150_000,
    }
    plan = make_plan(
        recipe_from(document), exact.indices(folders), budget=BUDGET, measured=informed.of_all(folders)
    )
    known = informed.folders_for(plan, folders["base"].parent)
    settings: dict[str, Any] = {"budget_bytes": BUDGET, "threads": 2, "survey": "full", "statistics": known}
    run(plan, folders, out, **settings | more)
    found: dict[str, Any] = json.loads((out / "merge_report.json").read_text())
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor.double()
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_what_adjusting_steps_hold_back_is_told_and_plotted(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    steps = [{"method": "task_arithmetic"}, {"method": "aim", "omega": 0.1}]
    plain = report(folders, tmp_path / "plain", steps[:1])["groups"][0]
    held = report(folders, tmp_path / "held", steps)["groups"][0]
    assert [layer["held_back"] for layer in plain["layers"]] == [1.0, 1.0]
    for before, after in zip(plain["layers"], held["layers"], strict=True):
        share = after["merged_norm"] / before["merged_norm"]
        assert 0.1 < share < 0.9
        assert after["held_back"] == pytest.approx(share, rel=1e-2), "bf16 of the result apart"
    pages = [(tmp_path / name / "merge_report.html").read_text() for name in ("plain", "held")]
    assert ["Held back" in page for page in pages] == [False, True]


def test_what_is_left_of_a_change_is_told_part_by_part(folders: Mapping[str, Path], tmp_path: Path) -> None:
    steps = [{"method": "task_arithmetic"}, {"method": "aim", "omega": 0.1}]
    plain = report(folders, tmp_path / "plain", steps[:1])["groups"][0]
    held = report(folders, tmp_path / "held", steps)["groups"][0]
    assert plain["cells"] == []
    base, before, after = (tensors(path) for path in (folders["base"], tmp_path / "plain", tmp_path / "held"))
    name = "model.layers.1.mlp.up_proj.weight"
    norms = [float((model[name] - base[name]).norm()) for model in (before, after)]
    (cell,) = (each for each in held["cells"] if (each["layer"], each["part"]) == (1, "mlp.up_proj"))
    assert [cell["merged_norm_before"], cell["merged_norm"]] == pytest.approx(norms, rel=1e-2), "bf16"
    assert (cell["class"], cell["tower"], cell["prepared_all"]) == ("linear", "model.layers", 1.0)
    parts = {(each["layer"], each["part"]) for each in held["cells"]}
    assert len(parts) == len(held["cells"]) and {part for layer, part in parts if layer == 0} == {
        part for layer, part in parts if layer == 1
    }
    page = (tmp_path / "held" / "merge_report.html").read_text()
    assert (
        "Held back, part by part" in page and f"layer 1, mlp.up_proj: {100 * cell['held_back']:.1f} %" in page
    )


def test_what_a_trimming_step_leaves_is_a_share_of_the_norm(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    steps = [{"method": "trim", "density": 0.5}, {"method": "task_arithmetic"}]
    (group,) = report(folders, tmp_path / "out", steps)["groups"]
    base, source = tensors(folders["base"]), tensors(folders["a"])
    name = "model.layers.0.self_attn.q_proj.weight"
    delta = (source[name] - base[name]).flatten().abs()
    kept = delta[delta >= delta.median()]
    (cell,) = (e for e in group["cells"] if (e["layer"], e["part"]) == (0, "self_attn.q_proj"))
    assert cell["prepared"]["a"] == pytest.approx(float(kept.norm() / delta.norm()), abs=1e-3)
    assert cell["held_back"] == 1.0 and group["all"]["prepared"].keys() == {"a", "b"}
    page = (tmp_path / "out" / "merge_report.html").read_text()
    assert "Trimmed, part by part" in page and "Held back" not in page


def test_totals_are_those_of_the_whole_models(folders: Mapping[str, Path], tmp_path: Path) -> None:
    found = report(folders, tmp_path / "out", [{"method": "ties", "density": 0.3}])
    (group,) = found["groups"]
    base, a, b, made = (
        tensors(each) for each in (folders["base"], folders["a"], folders["b"], tmp_path / "out")
    )
    flat = [torch.cat([(model[n] - base[n]).flatten() for n in made]) for model in (a, b, made)]
    whole = group["all"]
    assert whole["entries"] == flat[0].numel()
    assert whole["norms"]["a"] == pytest.approx(float(flat[0].norm()), rel=1e-5)
    assert whole["merged_norm"] == pytest.approx(float(flat[2].norm()), rel=1e-5)
    assert whole["cosine"][0][1] == pytest.approx(
        float(torch.cosine_similarity(flat[0], flat[1], 0)), abs=1e-5
    )
    assert whole["sign_conflict"] == pytest.approx(float((flat[0] * flat[1] < 0).double().mean()), abs=1e-5)
    assert whole["changed"] == pytest.approx(float((flat[2] != 0).double().mean()), abs=1e-5)
    way = (flat[1].sign() == flat[2].sign()) & (flat[1] != 0)
    assert whole["followed"]["b"] == pytest.approx(float(way.sum() / (flat[1] != 0).sum()), abs=1e-5)
    assert whole["kept"] == {"a": 1.0, "b": 1.0}
    assert sum(layer["tensors"] for layer in group["layers"]) < whole["tensors"] == len(group["tensors"])


def test_what_a_preparing_step_keeps_is_told(folders: Mapping[str, Path], tmp_path: Path) -> None:
    steps = [{"method": "dare", "density": 0.25}, {"method": "task_arithmetic", "scale": 0.5}]
    (group,) = report(folders, tmp_path / "out", steps)["groups"]
    assert group["all"]["kept"]["a"] == pytest.approx(0.25, abs=0.01)


def test_without_a_base_task_vectors_start_at_the_result(folders: Mapping[str, Path], tmp_path: Path) -> None:
    found = report(folders, tmp_path / "out", [{"method": "linear"}])
    assert found["task_vectors_from"] == "result"
    assert found["groups"][0]["all"]["cosine"][0][1] == pytest.approx(-1.0, abs=0.01)
    assert found["groups"][0]["all"]["merged_norm"] == 0


def test_the_bytes_of_the_report_do_not_depend_on_threads_or_interruptions(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    steps = [{"method": "dare", "density": 0.5}, {"method": "ties"}]
    report(folders, tmp_path / "one", steps, threads=1)
    shards: list[ShardDone] = []
    with pytest.raises(Stopped):
        report(folders, tmp_path / "two", steps, on_shard=shards.append, should_stop=lambda: bool(shards))
    report(folders, tmp_path / "two", steps, threads=4)
    for name in ("merge_report.json", "merge_report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_every_row_of_the_report_is_a_line(folders: Mapping[str, Path], tmp_path: Path) -> None:
    group = report(folders, tmp_path / "out", [{"method": "ties"}])["groups"][0]
    lines = (tmp_path / "out/merge_report.json").read_text().splitlines()
    for row in (*group["layers"], *group["tensors"]):
        assert json.dumps(row) in {line.removesuffix(",") for line in lines}


def test_a_sample_is_an_even_spread_and_totals_are_scaled_up(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    entries = 20 * (1 << 16)
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((entries,), value)}, tmp_path / name / "model.safetensors")
    folders = {name: tmp_path / name for name in ("base", "a", "b")}
    found = report(folders, tmp_path / "out", [{"method": "task_arithmetic"}], survey="sampled")
    assert found["entries_measured"] == PIECES_SAMPLED * SAMPLE_ENTRIES
    whole = found["groups"][0]["all"]
    assert whole["entries"] == entries
    assert whole["norms"]["b"] == pytest.approx(2 * entries**0.5, rel=1e-5)


def test_totals_count_tensors_that_were_not_looked_at() -> None:
    """Of more than 1,024 not each is: of 2,500 every third, here with a change of length 2 in 4 entries."""
    outputs = [
        OutputTensor(f"model.layers.{i // 500}.mlp.experts.{i % 500}.w1.weight", "F32", (2, 2), "expert",
                     i // 500, "method", (), (1.0,), (Input("base", "w"), Input("a", "w")))
        for i in range(2500)
    ]  # fmt: skip
    one = Measured(4, (4.0, 4.0, 0.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0))
    found = {output.name: one for output in outputs[::3]}
    (group,) = summarise(outputs, found, extent="sampled", from_base=True)["groups"]
    (experts,) = group["classes"]
    for whole, tensors in (
        (group["all"], 2500),
        (experts, 2500),
        *((layer, 500) for layer in group["layers"]),
    ):
        assert (whole["tensors"], whole["entries"]) == (tensors, 4 * tensors)
        assert whole["merged_norm"] == whole["norms"]["a"] == pytest.approx(2 * tensors**0.5, rel=1e-5)


def test_what_a_policy_decided_is_told_apart(folders: Mapping[str, Path], tmp_path: Path) -> None:
    told = report(folders, tmp_path / "out", [{"method": "tsv_m"}])
    assert "embed" not in [each["class"] for each in told["groups"][0]["classes"]]
    entries = 700 * 128
    assert told["left_out"] == [
        {"class": role, "policy": "mean", "tensors": 1, "entries": entries} for role in ("embed", "head")
    ]
    page = (tmp_path / "out" / "merge_report.html").read_text()
    assert "Not in these numbers: 1 tensor of class embed (89,600 entries), by policy mean." in page


def test_no_report_where_none_is_wanted(folders: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        report(folders, tmp_path / "out", [{"method": "linear"}], survey="none")


def test_names_of_models_cannot_put_markup_into_the_page() -> None:
    survey = {"task_vectors_from": "base", "extent": "full", "entries_measured": 0, "groups": []}
    page = render_page(survey, title="<script>alert(1)</script>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_model_called_merged_has_a_curve_beside_that_of_the_result(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    survey = report(folders, tmp_path / "out", [{"method": "linear"}])
    for layer in survey["groups"][0]["layers"]:
        for told in ("norms", "followed"):
            layer[told]["merged"] = layer[told].pop("b")
    survey["groups"][0]["models"] = ["a", "merged"]
    for told in ("norms", "kept", "followed", "prepared"):
        survey["groups"][0]["all"][told]["merged"] = survey["groups"][0]["all"][told].pop("b")
    norms = render_page(survey, title="x").split('"Norms of the task vectors by layer"')[1].split("</svg>")[0]
    assert [each.split("<")[0] for each in norms.split("<title>")[1:]] == ["a", "merged", "the result"]
