"""Results that are no checkpoint by themselves, and parents that are none, are checked and scored too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from db import evaluations
from db.models.evaluation import Evaluation, EvaluationScore
from db.models.job import Job
from scoring.runner import score_model
from scoring.tasks import parse_task
from tests import tiny
from tests.worker.conftest import Floor, family_recipe
from tests.worker.merging import REPO, TEXTS, commits, scored
from tests.worker.test_result_forms import Q, warned

Found = dict[str, tuple[Evaluation, list[EvaluationScore]]]
ADAPTERS: dict[str, Any] = {
    "base": "team/base",
    "sources": [{"id": name, "adapter": f"team/{name}"} for name in ("one", "two")],
    "steps": ["task_arithmetic"],
}
AS_ADAPTER = {**ADAPTERS, "result": {"form": "adapter", "error": 0.0}}
BUNDLE = family_recipe(steps=["task_arithmetic"], result={"form": "bundle", "kind": "tall"})


@pytest.fixture
def loras(floor: Floor) -> Path:
    """Two adapters on the folder Hub."""
    root = floor.hub.store.root / "team"
    for seed, name in enumerate(("one", "two")):
        tiny.lora(root / name, {Q: (64, 64)}, seed=seed, r=2, alpha=40)
    return root


def ran(floor: Floor, recipe: dict[str, Any], **order: Any) -> tuple[Job, Found]:
    job = floor.run(floor.order(recipe, **order))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    assert list(floor.workshop.settings.scratch.rglob("candidate")) == []
    with floor.sessions() as session:
        return job, {row.name: (row, scores) for row, scores in evaluations.of_job(session, job.id)}


def bits(found: Found) -> dict[str, float]:
    return {score.subject: score.value for score in found["texts"][1] if score.metric == "bits_per_byte"}


def compared(found: Found) -> dict[str, set[str]]:
    return {s.subject: set(s.differences) for s in found["texts"][1] if s.differences}


def data_bytes(folder: Path) -> int:
    """Bytes of the tensors of a model, without headers."""
    return sum(each.nbytes for path in folder.glob("*.safetensors") for each in load_file(path).values())


def bits_of(folder: Path) -> float:
    task = parse_task("texts", "perplexity", TEXTS.encode(), file="texts.jsonl")
    return next(each.value for each in score_model(folder, [task]) if each.metric == "bits_per_byte")


def by_hand(root: Path, *names: str) -> float:
    """Bits per byte of the base with adapters added to it, without the engine."""
    folder = root.parent / "-".join(names)
    shutil.copytree(root / "base", folder)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in names:
            a, b = (
                load_file(root / name / "adapter_model.safetensors")[
                    f"base_model.model.{Q}.lora_{side}.weight"
                ]
                for side in "AB"
            )
            if f"{Q}.weight" in tensors:
                own = tensors[f"{Q}.weight"]
                tensors[f"{Q}.weight"] = (own.float() + 20 * b @ a).to(own.dtype)
        save_file(tensors, path, {"format": "pt"})
    return bits_of(folder)


def test_an_adapter_and_those_it_is_made_of_are_scored_over_their_base(floor: Floor, loras: Path) -> None:
    job, found = ran(floor, AS_ADAPTER, **scored(floor, loss_margin=None))
    assert job.result is not None and job.plan is not None and job.result["checked"] is True
    assert found["check"][0].passed is True
    wanted = {
        "result": by_hand(loras, "one", "two"),
        "one": by_hand(loras, "one"),
        "two": by_hand(loras, "two"),
    }
    got = bits(found)
    assert {name: got[name] for name in wanted} == pytest.approx(wanted, rel=1e-3)
    assert len(set(got.values())) == 4 and compared(found) == {"result": {"base", "one", "two"}}
    whole = data_bytes(loras / "base")
    estimate = job.plan["estimate"]
    assert floor.hub.stats.bytes["weight"] == whole + 2 * 4 * (2 * 64 + 64 * 2)
    assert estimate["download_bytes"] > whole and estimate["disk_bytes"] > 2 * whole
    assert "| texts | bits\\_per\\_byte (lower is better) |" in floor.read(REPO, "README.md").decode()


def test_adapters_are_parents_of_an_ordinary_merge(floor: Floor, loras: Path) -> None:
    _, found = ran(floor, ADAPTERS, **scored(floor, loss_margin=None))
    assert bits(found)["one"] == pytest.approx(by_hand(loras, "one"), rel=1e-3)
    assert compared(found) == {"result": {"base", "one", "two"}}


def test_every_member_of_a_bundle_is_scored_beside_the_base_and_its_own_source(floor: Floor) -> None:
    job, found = ran(floor, BUNDLE, **scored(floor))
    assert job.result is not None and job.result["checked"] is True
    assert found["check:a"][0].passed is True and found["check:b"][0].passed is True
    got = bits(found)
    assert set(got) == {"result:a", "result:b", "base", "a", "b"} and got["result:a"] != got["result:b"]
    assert compared(found) == {"result:a": {"base", "a"}, "result:b": {"base", "b"}}
    card = floor.read(REPO, "README.md").decode()
    assert "texts, member b" in card and "its source" in card
    told = [each.data for each in floor.events(job.id) if each.type == "evaluation.completed"]
    assert {each["name"] for each in told} == {"check:a", "check:b", "texts"}
    assert {each["subject"] for each in told[-1]["scores"]} == set(got)


def test_a_member_that_fails_its_check_stops_the_push(floor: Floor) -> None:
    for name in ("base", "expert1", "expert2"):
        path = floor.hub.store.root / "team" / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 8}))
    job = floor.run(floor.order(BUNDLE, output={"repo": REPO}))
    assert (job.state, job.error_code) == ("failed", "check_failed"), job.error_detail
    assert "member a: " in (job.error_detail or "") and commits(floor) == 0
    job, found = ran(floor, BUNDLE, output={"repo": REPO, "publish": "always"})
    assert job.result is not None and job.result["checked"] is False and not found["check:b"][0].passed


def test_the_margin_is_about_every_member(floor: Floor) -> None:
    job = floor.run(floor.order(BUNDLE, **scored(floor, margin=0.0, loss_margin=None)))
    assert (job.state, job.error_code) == ("failed", "check_failed") and commits(floor) == 0
    assert " of member " in (job.error_detail or "")


def test_an_adapter_nobody_wants_scored_is_checked_where_that_is_possible(floor: Floor, loras: Path) -> None:
    recipe = {**ADAPTERS, "sources": ["team/expert1"], "steps": ["passthrough"]}
    extracted = {**recipe, "result": {"form": "adapter", "rank": 4}}
    job, found = ran(floor, extracted, output={"repo": REPO})
    assert job.result is not None and job.result["checked"] is True and set(found) == {"check"}
    floor.free_memory = lambda _: 1000
    job, _ = ran(floor, extracted, output={"repo": f"{REPO}-small"})
    assert job.result is not None and job.result["checked"] is None and "not_checked" in warned(floor, job.id)


def test_without_memory_for_its_base_an_adapter_to_be_scored_is_refused_first(
    floor: Floor, loras: Path
) -> None:
    floor.free_memory = lambda _: 1000
    job = floor.run(floor.order(AS_ADAPTER, **scored(floor)))
    assert (job.state, job.error_code) == ("failed", "check_impossible")
    assert floor.hub.stats.bytes["weight"] == 0


def test_an_adapter_over_a_stage_is_scored_over_what_the_stage_gives(floor: Floor) -> None:
    stage = {"sources": ["team/base", "team/expert1"], "steps": ["linear"]}
    recipe = {"stages": {"mean": stage}, "base": "stage:mean", "sources": ["team/expert2"]}
    result = {"steps": ["passthrough"], "result": {"form": "adapter", "rank": 64}}
    _, found = ran(floor, {**recipe, **result}, **scored(floor))
    root = floor.hub.store.root
    shutil.copytree(root / "team/base", root / "hand")
    told = load_file(root / REPO / "adapter_model.safetensors")
    for path in (root / "hand").glob("*.safetensors"):
        base, one, two = (load_file(root / "team" / n / path.name) for n in ("base", "expert1", "expert2"))
        changed = {name for name in base if any(name.removesuffix(".weight") in key for key in told)}
        mean = {name: ((base[name].float() + one[name].float()) / 2).to(base[name].dtype) for name in base}
        save_file({name: (two if name in changed else mean)[name] for name in base}, path, {"format": "pt"})
    got = bits(found)
    assert set(got) == {"result", "m0", "mean.m0", "mean.m1"}
    assert got["result"] == pytest.approx(bits_of(root / "hand"), rel=1e-3)


def test_a_parent_of_which_the_merge_reads_a_part_is_scored_whole(floor: Floor) -> None:
    cut = {"slices": [{"sources": [{"id": "a", "layers": [0, 1]}]}]}
    recipe = {"sources": [{"id": "a", "model": "team/expert1"}], "steps": ["passthrough"], **cut}
    _, found = ran(floor, recipe, **scored(floor, loss_margin=None))
    assert set(bits(found)) == {"result", "a"}
    assert floor.hub.stats.bytes["weight"] == data_bytes(floor.hub.store.root / "team/expert1")


def test_a_parent_that_cannot_be_scored_is_told_in_the_plan_and_beside_the_scores(floor: Floor) -> None:
    (floor.hub.store.root / "team/expert2/config.json").unlink()
    job, found = ran(floor, family_recipe(), **scored(floor))
    assert job.plan is not None
    told = [each for each in job.plan["findings"] if each["code"] == "parent_not_scored"]
    assert [each["model"] for each in told] == ["b"] and "no config" in told[0]["message"]
    assert set(bits(found)) == {"result", "base", "a"}
    assert list(found["texts"][0].detail["not_scored"]) == ["b"] and "not_scored" in warned(floor, job.id)


def test_sets_for_a_result_that_nothing_loads_are_refused(floor: Floor) -> None:
    for name in ("base", "expert1", "expert2"):
        path = floor.hub.store.root / "team" / name / "config.json"
        path.write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    job = floor.run(floor.order(**scored(floor)))
    assert (job.state, job.error_code) == ("failed", "request_invalid"), job.error_detail
    assert "cannot be scored" in (job.error_detail or "") and floor.hub.stats.bytes["weight"] == 0
