"""Which way the candidates of a search go is known when it is ordered."""

from pathlib import Path
from typing import Any

import pytest

from jobs.candidates import Way, told, way_of
from jobs.errors import RequestInvalid
from jobs.planning import Planned
from jobs.request import SearchRequest, read_order
from jobs.sets import EvalSet
from merge.errors import PlanRefused
from merge.local import index_models
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from tests import tiny

FAMILY: dict[str, Any] = {
    "base": "base",
    "sources": [{"id": "a", "model": "expert1", "prompts": ["a"]}, {"id": "b", "model": "expert2"}],
    "steps": ["task_arithmetic"],
}
SPACE = {"scale": {"at": "steps.task_arithmetic.scale", "low": 0, "high": 1}}
STAGE = {"s": {"sources": ["expert1", "expert2"], "steps": ["linear"]}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.family(root, experts=2)
    return root


def plan(root: Path, **changes: Any) -> Plan:
    recipe = recipe_from({**FAMILY, **changes})
    return make_plan(recipe, index_models(recipe, root), budget=1 << 30)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"result": {"form": "adapter", "rank": 2}}, "its result is an adapter"),
        ({"result": {"form": "bundle", "kind": "tall"}}, "its result is a bundle"),
        ({"stages": STAGE, "sources": ["stage:s"]}, "it has stages"),
        ({"chat_template": "chatml"}, "it has a chat template of its own"),
        (
            {"slices": [{"sources": [{"id": "a", "layers": [0, 1]}], "base_layers": [0, 1]}]},
            "its result has other layers than its models",
        ),
    ],
)
def test_what_would_be_another_model_than_the_one_in_memory_is_written(
    root: Path, changes: dict[str, Any], why: str | None
) -> None:
    way = way_of(plan(root, **changes), ())
    assert (way.why, way.made) == (why, "memory" if why is None else "disk")


def test_what_another_library_scores_is_written(root: Path) -> None:
    texts = EvalSet.model_validate({"name": "t", "kind": "perplexity", "data": {"path": "t.jsonl"}})
    arc = EvalSet.model_validate({"name": "arc", "kind": "lm_eval", "settings": {"task": "arc_easy"}})
    assert way_of(plan(root), [texts]).why is None
    way = way_of(plan(root), [texts, arc])
    assert way.why == "its set arc is scored by lm-evaluation-harness, which loads a folder"
    assert way.made == "disk" and way.peak_bytes == max(way.model_bytes, way.merge_bytes)


def test_an_adapter_takes_the_disk_of_its_base_too_and_the_memory_of_a_whole_model(root: Path) -> None:
    whole, adapter = plan(root), plan(root, result={"form": "adapter", "rank": 2})
    base = adapter.models["base"]
    assert way_of(whole, ()).disk_bytes == whole.estimate.output_bytes
    assert way_of(adapter, ()).disk_bytes >= base.bytes + adapter.estimate.output_bytes
    assert way_of(whole, ()).model_bytes == way_of(adapter, ()).model_bytes == 4 * base.parameters


def test_an_adapter_over_a_stage_takes_the_disk_of_what_the_stage_gives_as_well(root: Path) -> None:
    result = {"form": "adapter", "rank": 2}
    one, other = plan(root, result=result), plan(root, stages=STAGE, base="stage:s", result=result)
    beside = other.models["base"].bytes + other.staged.disk_bytes
    grown = other.estimate.output_bytes - one.estimate.output_bytes
    assert way_of(other, ()).disk_bytes == way_of(one, ()).disk_bytes + grown + beside
    assert way_of(other, ()).model_bytes == way_of(one, ()).model_bytes


def test_what_does_not_fit_beside_the_merge_is_written(root: Path) -> None:
    way = Way(None, model_bytes=600, merge_bytes=500, disk_bytes=300)
    assert way.within(1100) == way and way.peak_bytes == 1100
    short = way.within(1099)
    assert short.made == "disk" and short.peak_bytes == 600
    assert "600 bytes" in str(short.why) and "1099 bytes of memory" in str(short.why)
    assert short.within(0).why == short.why


def test_what_nothing_can_load_is_refused(root: Path) -> None:
    deepseek = {"form": "moe", "architecture": "deepseek", "gate": "random"}
    with pytest.raises(RequestInvalid, match="no class for a deepseek mixture"):
        way_of(plan(root, result=deepseek), ())


@pytest.mark.parametrize(
    ("result", "more"), [({"form": "checkpoint"}, False), ({"form": "bundle", "kind": "tall"}, True)]
)
def test_a_disk_that_cannot_hold_one_candidate_is_told_when_it_is_ordered(
    root: Path, result: dict[str, Any], more: bool
) -> None:
    sets = [{"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}]
    search = {"method": "grid", "space": SPACE, "objectives": [{"set": "texts"}]}
    recipe = {**FAMILY, "result": result}
    order = read_order({"kind": "search", "recipe": recipe, "search": search, "evaluate": {"sets": sets}})
    assert isinstance(order, SearchRequest)
    made = plan(root, result=result)
    planned = Planned(made.summary(), made, (), order.recipe, "cpu", ())
    needed = told(planned, order, None).summary["estimate"]["disk_bytes"]
    assert (needed > made.estimate.disk_bytes) is more
    with pytest.raises(PlanRefused, match=f"one candidate need {needed} bytes of disk"):
        told(planned, order, needed - 1)
    assert told(planned, order, needed).summary["estimate"]["output_bytes"] == 0
