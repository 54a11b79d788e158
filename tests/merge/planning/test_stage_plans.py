from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge.checkpoint.index import index_folder
from merge.errors import FindingsError, PlanRefused, RecipeInvalid
from merge.plan import check_recipe, make_plan
from merge.planning.stages import alone
from merge.recipe.recipe import recipe_digest, recipe_from
from merge.recipe.stages import leaves
from tests import tiny
from tests.merge.stages import BUDGET, indices, merged, planned

MEAN: dict[str, Any] = {"sources": ["expert1", "expert2"], "steps": ["linear"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("models")
    tiny.family(root)
    tiny.llama(root / "wide", hidden=32)
    tiny.llama(root / "long", layers=4)
    tiny.llama(root / "tied", tied=True, shards=2)
    return {folder.name: folder for folder in root.iterdir()}


def staged(*, stages: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    plain = {"sources": ["stage:mean", "expert3"], "steps": ["linear"]}
    return {"stages": {"mean": MEAN} if stages is None else stages, **plain, **more}


@pytest.mark.parametrize(
    "stage",
    [
        MEAN,
        {**MEAN, "dtype": {"output": "float16"}, "shard_bytes": 65_536, "chat_template": "chatml"},
        {"sources": ["tied"], "steps": ["passthrough"]},
        {
            "sources": [{"id": "x", "model": "long"}],
            "slices": [
                {"sources": [{"id": "x", "layers": [0, 2]}]},
                {"sources": [{"id": "x", "layers": [1, 4]}]},
            ],
            "steps": ["passthrough"],
        },
        {"sources": ["expert1", "long"], "steps": ["linear"], "missing": "fill"},
    ],
)
def test_a_stage_is_planned_with_as_what_its_folder_would_be(
    stage: dict[str, Any], folders: Mapping[str, Path], tmp_path: Path
) -> None:
    plan = planned({"stages": {"one": stage}, "sources": ["stage:one"], "steps": ["linear"]}, folders)
    ours = plan.staged.stages["one"].index
    written = index_folder(merged(stage, folders, tmp_path / "one"), "stage:one")
    assert (ours.label, ours.tensors, ours.config) == (written.label, written.tensors, written.config)
    assert list(ours.tensors) == list(written.tensors)
    assert ours.tokenizer is not None and written.tokenizer is not None
    assert ours.tokenizer.digest == written.tokenizer.digest
    assert ours.tokenizer.chat_template == written.tokenizer.chat_template
    assert ours.stem == written.stem


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"sources": ["stage:man"]}, "stage_unknown", "/sources/0/model"),
        ({"base": "stage:x", "sources": ["stage:mean"]}, "stage_unknown", "/base"),
        ({"sources": ["expert1"]}, "stage_unused", "/stages/mean"),
        ({"stages": {"mean": {**MEAN, "stages": {"a": MEAN}}}}, "stage_nested", "/stages/mean/stages"),
        ({"stages": {"mean": {**MEAN, "base": "b", "result": {"form": "adapter", "rank": 2}}}},
         "stage_result", "/stages/mean/result"),
        ({"stages": {"mean": {**MEAN, "sources": ["stage:mean"]}}}, "stage_cycle", "/stages/mean"),
        ({"stages": {"mean": {**MEAN, "sources": ["stage:b"]}, "b": {**MEAN, "sources": ["stage:mean"]}}},
         "stage_cycle", "/stages/b"),
        ({"sources": [{"model": "stage:mean", "adapter": "x"}]}, "stage_adapter", "/sources/0/adapter"),
        ({"sources": [{"model": "base", "adapter": "stage:mean"}]}, "stage_adapter", "/sources/0/adapter"),
        ({"steps": ["regmean"]}, "stage_informed", "/steps"),
        ({"base": "stage:mean", "steps": ["ties", "aim"]}, "stage_informed", "/steps"),
        ({"stages": {"mean": {**MEAN, "steps": ["regmean"]}}}, "stage_informed", "/stages/mean/steps"),
        ({"stages": {"mean": {**MEAN, "reference": "zz"}}}, "unknown_source", "/stages/mean/reference"),
        ({"stages": {"mean": {**MEAN, "sorces": []}}}, "unknown_field", "/stages/mean/sorces"),
        ({"stages": {"mean": {**MEAN, "sources": [{"modl": "x"}]}}}, "unknown_field",
         "/stages/mean/sources/0/modl"),
        ({"stages": {"No good": MEAN}}, "field_invalid", "/stages/No good"),
        ({"stages": {f"s{n}": MEAN for n in range(17)}}, "field_invalid", "/stages"),
    ],
)  # fmt: skip
def test_stages_that_cannot_be_are_findings(change: dict[str, Any], code: str, pointer: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        recipe_from(staged(**change))
    assert (code, pointer) in {(each.code, each.pointer) for each in caught.value.findings}


def test_what_is_wrong_in_a_stage_is_told_with_its_name_and_place(folders: Mapping[str, Path]) -> None:
    recipe = recipe_from(staged(stages={"mean": {**MEAN, "steps": ["linaer"]}}))
    (finding,) = check_recipe(recipe)
    assert (finding.code, finding.pointer) == ("unknown_method", "/stages/mean/steps/0/method")
    assert finding.message.startswith("Stage mean: ")
    with pytest.raises(PlanRefused) as caught:
        planned(staged(stages={"mean": {**MEAN, "sources": ["expert1", "wide"]}}), folders)
    assert {each.model for each in caught.value.findings if each.severity == "error"} == {"mean.m1"}
    assert all(each.message.startswith("Stage mean: ") for each in caught.value.findings)


def test_a_stage_that_does_not_fit_is_told_by_its_name(folders: Mapping[str, Path]) -> None:
    with pytest.raises(PlanRefused, match="stage:mean"):
        planned(staged(sources=["wide", "stage:mean"]), folders)


def test_a_model_of_a_stage_that_was_not_given_is_told(folders: Mapping[str, Path]) -> None:
    recipe = recipe_from(staged())
    models = indices(recipe, folders)
    del models["mean.m1"]
    with pytest.raises(FindingsError) as caught:
        make_plan(recipe, models, budget=BUDGET)
    assert [each.code for each in caught.value.findings] == ["model_missing"]


def test_the_digests_cover_stages_but_not_their_order(folders: Mapping[str, Path]) -> None:
    two = {"mean": MEAN, "b": {"sources": ["expert3"], "steps": ["passthrough"]}}
    used = staged(stages=two, sources=["stage:mean", "stage:b"])
    turned = {**used, "stages": dict(reversed(two.items()))}
    changed = {**used, "stages": {**two, "mean": {**MEAN, "seed": 1}}}
    digests = [recipe_digest(recipe_from(each)) for each in (used, turned, changed)]
    assert digests[0] == digests[1] != digests[2]
    plans = [planned(each, folders).digest for each in (used, turned, changed)]
    assert plans[0] == plans[1] != plans[2]


def test_other_weights_structure_in_a_stage_gives_another_plan(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    other = {**folders, "expert2": tiny.llama(tmp_path / "other", expert=2, shards=2)}
    assert planned(staged(), folders).digest != planned(staged(), other).digest


def test_every_model_is_fetched_once_and_written_stages_take_disk(folders: Mapping[str, Path]) -> None:
    size = index_folder(folders["base"]).bytes
    ranked = {
        "base": "base",
        "sources": ["expert1", "expert2"],
        "steps": [{"method": "ties", "scope": "global"}],
    }
    for stage, written in ((MEAN, 0), (ranked, 1)):
        plan = planned(staged(stages={"mean": stage}, sources=["stage:mean", "expert1"]), folders)
        assert plan.estimate.download_bytes == (2 + written) * size
        assert plan.staged.disk_bytes == written * plan.estimate.output_bytes
        disk = plan.estimate.download_bytes + plan.staged.disk_bytes + plan.estimate.output_bytes
        assert plan.estimate.disk_bytes == disk
        assert plan.estimate.peak_memory_bytes <= BUDGET
    with pytest.raises(PlanRefused, match="bytes of disk"):
        planned(staged(stages={"mean": ranked}), folders, scratch_free=6 * size)


def test_too_little_memory_for_what_is_computed_meanwhile_is_a_finding(folders: Mapping[str, Path]) -> None:
    planned({"sources": ["expert1", "expert3"], "steps": ["linear"]}, folders, budget=56 << 20)
    with pytest.raises(PlanRefused) as caught:
        planned(staged(), folders, budget=56 << 20)
    assert "budget_too_small" in {each.code for each in caught.value.findings}


def test_the_summary_tells_what_becomes_of_each_stage(folders: Mapping[str, Path]) -> None:
    summary = planned(staged(sources=["stage:mean"] * 5), folders).summary()
    stage = summary["stages"]["mean"]
    assert (stage["written"], stage["why"]) == (True, "it is read 5 times")
    assert [step["method"] for step in stage["steps"]] == ["linear"]
    assert summary["counts"]["models"] == 7


def test_what_a_stage_gives_is_a_recipe_by_itself_with_the_stages_that_it_uses_alone() -> None:
    outer = {**MEAN, "sources": ["expert3", "stage:inner"]}
    stages = {"outer": outer, "inner": MEAN, "other": MEAN}
    whole = recipe_from(staged(stages=stages, sources=["stage:outer", "stage:other"]))
    made = recipe_from(alone(whole, "outer").model_dump(mode="json"))
    assert set(made.stages) == {"outer", "inner"} and made.stages["outer"] == whole.stages["outer"]
    assert {each.role for each in leaves(made)} == {"outer.m0", "inner.m0", "inner.m1"}
