"""What scoring a merge takes, and what of it cannot be had, is known when it is ordered."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.asking import Asking
from jobs.errors import RequestInvalid
from jobs.evaluating import told
from jobs.kinds import plan_order
from jobs.planning import Planned, Planner
from jobs.request import read_order
from jobs.sets import EvaluateRequest
from merge.errors import PlanRefused
from tests import tiny

Q = "model.layers.0.self_attn.q_proj"
SETS = [{"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}]
FAMILY: dict[str, Any] = {
    "base": "base",
    "sources": [{"id": "a", "model": "expert1"}, {"id": "b", "model": "expert2"}],
    "steps": ["task_arithmetic"],
}
ADAPTER = {"form": "adapter", "rank": 2}
STAGE = {"mean": {"sources": ["expert1", "expert2"], "steps": ["linear"]}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.family(root, experts=2)
    tiny.lora(root / "lora", {Q: (16, 16)})
    return root


@pytest.fixture
def planner(root: Path) -> Iterator[Planner]:
    def no_hub(token: str | None) -> Any:
        return object()  # everything is in folders

    with closing(Planner(no_hub, [root], 1 << 30)) as planner:
        yield planner


def plan(planner: Planner, sets: bool = True, free: int | None = None, **changes: Any) -> Planned:
    evaluate = {"sets": SETS, **changes.pop("evaluate", {})} if sets else {}
    order = read_order({"recipe": {**FAMILY, **changes}, "evaluate": evaluate})
    planned = plan_order(order, Asking(planner, None, "anyone", scratch_free=free))
    assert isinstance(planned, Planned)
    return planned


def disk(planned: Planned) -> int:
    return int(planned.summary["estimate"]["disk_bytes"])


@pytest.mark.parametrize("result", [ADAPTER, {"form": "bundle", "kind": "tall"}])
def test_the_disk_holds_the_checkpoint_that_is_looked_at(planner: Planner, result: dict[str, Any]) -> None:
    base = plan(planner).plan.models["base"].bytes
    assert disk(plan(planner)) == disk(plan(planner, sets=False))
    assert disk(plan(planner, result=result)) == disk(plan(planner, sets=False, result=result)) + base
    source = {"id": "c", "adapter": "lora"}
    assert disk(plan(planner, sources=[source])) == disk(plan(planner, sets=False, sources=[source])) + base
    alone = plan(planner, sources=[source], evaluate={"parents": False})
    assert disk(alone) == disk(plan(planner, sets=False, sources=[source]))


def test_a_base_that_a_stage_gives_is_written_too(planner: Planner) -> None:
    changes = {"stages": STAGE, "base": "stage:mean", "result": ADAPTER}
    planned = plan(planner, **changes)
    more = 2 * planned.plan.models["base"].bytes + planned.plan.staged.disk_bytes
    assert disk(planned) == disk(plan(planner, sets=False, **changes)) + more


def test_a_disk_too_small_for_scoring_is_told_when_it_is_ordered(planner: Planner) -> None:
    needed = disk(plan(planner, result=ADAPTER))
    with pytest.raises(PlanRefused, match=f"need {needed} bytes of disk"):
        plan(planner, free=needed - 1, result=ADAPTER)
    assert disk(plan(planner, free=needed, result=ADAPTER)) == needed


def test_the_memory_holds_the_largest_model_as_float32(planner: Planner) -> None:
    planned = plan(planner, sets=False)
    little = planned.saying({"estimate": {**planned.summary["estimate"], "peak_memory_bytes": 0}})
    evaluate = EvaluateRequest.model_validate({"sets": SETS})
    needed = told(little, evaluate).summary["estimate"]["peak_memory_bytes"]
    assert needed == 4 * planned.models["base"].parameters
    assert plan(planner).summary["estimate"]["peak_memory_bytes"] >= needed


def test_parents_that_are_not_scored_take_no_memory(planner: Planner) -> None:
    planned = plan(planner, sets=False)
    base = planned.models["base"]
    twice = replace(
        base, tensors={f"{part}.{name}": base.tensors[name] for part in "ab" for name in base.tensors}
    )
    beside = replace(
        planned.saying({"estimate": {**planned.summary["estimate"], "peak_memory_bytes": 0}}),
        models={**planned.models, "base": twice},
    )
    for parents, models in ((True, 2), (False, 1)):
        evaluate = EvaluateRequest.model_validate({"sets": SETS, "parents": parents})
        peak = told(beside, evaluate).summary["estimate"]["peak_memory_bytes"]
        assert peak == models * 4 * base.parameters


def test_sets_for_what_nothing_can_load_are_refused(root: Path, planner: Planner) -> None:
    deepseek = {"form": "moe", "architecture": "deepseek", "gate": "random"}
    with pytest.raises(RequestInvalid, match="no class for a deepseek mixture") as refused:
        plan(planner, result=deepseek)
    assert refused.value.pointer == "/evaluate/sets"
    assert plan(planner, sets=False, result=deepseek).plan.code
    tiny.llama(root / "bare")
    (root / "bare" / "config.json").unlink()
    with pytest.raises(RequestInvalid, match="bare, from which it takes its config"):
        plan(planner, base=None, sources=["bare", "bare"], steps=["linear"])


def test_a_parent_that_cannot_be_scored_is_a_finding(root: Path, planner: Planner) -> None:
    tiny.llama(root / "odd", expert=3)
    (root / "odd" / "config.json").unlink()
    changes = {"sources": ["expert1", {"id": "odd", "model": "odd"}]}
    told = [each for each in plan(planner, **changes).findings if each.code == "parent_not_scored"]
    assert [(each.severity, each.model) for each in told] == [("warning", "odd")]
    quiet = plan(planner, evaluate={"parents": False}, **changes)
    assert "parent_not_scored" not in json.dumps(quiet.summary["findings"])
