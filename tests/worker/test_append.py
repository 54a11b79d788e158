"""One more model joins the result of an earlier job, through the whole service."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from jobs.append import AppendRequest, append_order
from jobs.request import JobRequest
from merge.append import STATE_FILE
from tests import tiny
from tests.worker.conftest import Floor

REPO = "team/merged"


def order(*experts: str) -> dict[str, Any]:
    return {
        "base": "team/base",
        "sources": [{"id": name, "model": f"team/{name}"} for name in experts],
        "steps": ["opcm"],
        "dtype": {"output": "float32"},
    }


def again(floor: Floor, job: Any, model: str, **more: Any) -> dict[str, Any]:
    """The recipe and output of the job that appends ``model``."""
    made = append_order(job, AppendRequest(model=model, **more))
    assert isinstance(made, JobRequest)
    return {"recipe": made.recipe.model_dump(mode="json"), "output": made.output.model_dump()}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {
        k: v.double() for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def close(floor: Floor, found: Path, wanted: Path) -> bool:
    base = tensors(floor.hub.store.root / "team" / "base")
    ours, theirs = tensors(found), tensors(wanted)
    return all(
        float((ours[name] - theirs[name]).norm()) <= 3e-3 * float((theirs[name] - base[name]).norm()) + 1e-6
        for name in theirs
    )


@pytest.fixture
def third(floor: Floor) -> Floor:
    """A floor with one more expert."""
    tiny.llama(floor.hub.store.root / "team" / "expert3", expert=3, layers=6, hidden=64, shards=2)
    return floor


def test_a_pushed_result_is_joined_from_its_commit(third: Floor) -> None:
    floor, root = third, third.hub.store.root
    first = floor.run(floor.order(order("expert1", "expert2"), output={"repo": REPO}))
    assert first.state == "succeeded", (first.error_code, first.error_detail)
    assert first.result is not None and first.result["state"]["models"] == 2
    assert (root / REPO / STATE_FILE).is_file()
    told = again(floor, first, "team/expert3", output={"repo": "team/more"})
    assert told["recipe"]["sources"][0]["model"] == first.id
    second = floor.run(floor.order(told["recipe"], output=told["output"]))
    assert second.state == "succeeded", (second.error_code, second.error_detail)
    assert second.result is not None and second.result["state"]["models"] == 3
    assert floor.hub.stats.bytes["weight"] > 0
    whole = floor.run(floor.order(order("expert1", "expert2", "expert3"), output={"repo": "team/all"}))
    assert whole.state == "succeeded", (whole.error_code, whole.error_detail)
    assert close(floor, root / "team" / "more", root / "team" / "all")


def test_a_kept_result_is_joined_where_it_lies_and_can_be_joined_again(third: Floor) -> None:
    floor = third
    first = floor.run(floor.order(order("expert1")))
    assert first.result is not None and first.result["state"]["models"] == 1
    jobs = [first]
    for name in ("expert2", "expert3"):
        told = again(floor, jobs[-1], f"team/{name}")
        jobs.append(floor.run(floor.order(told["recipe"])))
        assert jobs[-1].state == "succeeded", (jobs[-1].error_code, jobs[-1].error_detail)
    whole = floor.run(floor.order(order("expert1", "expert2", "expert3")))
    assert jobs[-1].result is not None and whole.result is not None
    assert close(floor, Path(jobs[-1].result["folder"]), Path(whole.result["folder"]))


def test_the_same_folder_names_another_tenants_job_for_nobody(third: Floor) -> None:
    floor = third
    first = floor.run(floor.order(order("expert1")))
    told = again(floor, first, "team/expert2")
    with floor.sessions.begin() as session:
        from tests.factories import make_caller, make_job, make_rules

        stranger = make_caller(session, "mallory")
        job_id = make_job(session, stranger, rules=make_rules(), recipe=told["recipe"]).id
    job = floor.run(job_id)
    assert job.state == "failed"
    assert f"no job '{first.id}'" in str(job.error_findings or job.error_detail)


def test_a_result_that_is_gone_says_so(third: Floor) -> None:
    floor = third
    first = floor.run(floor.order(order("expert1")))
    assert first.result is not None
    shutil.rmtree(first.result["folder"])
    job = floor.run(floor.order(again(floor, first, "team/expert2")["recipe"]))
    assert job.state == "failed"
    assert "no longer kept" in str(job.error_findings or job.error_detail)
