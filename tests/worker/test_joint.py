"""Jobs whose methods run several models beside each other: RegMean++, RCP, trained regions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merge.learn.statistics import read_manifest
from merge.learn.walk import Stage
from tests import tiny
from tests.factories import let_lease_run_out
from tests.worker.conftest import Floor, family_recipe
from tests.worker.test_measuring import Killed, measured, rows, store_of
from worker.sweep import recover

CALIBRATION = {"documents": 4, "tokens": 32}
TRAINED = {"method": "localize_and_stitch", "region": "trained", "epochs": 1}


def recipe(*steps: Any, **changes: Any) -> dict[str, Any]:
    return family_recipe(steps=list(steps), calibration=CALIBRATION, **changes)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("step", "kinds"),
    [("regmean_pp", ["gram_merged"]), ("rcp", ["grad_weight", "votes"]), (TRAINED, ["mask"])],
    ids=["regmean_pp", "rcp", "trained"],
)
def test_a_job_measures_models_beside_each_other_and_finds_it_again(
    floor: Floor, step: Any, kinds: list[str]
) -> None:
    job = floor.run(floor.order(recipe(step)))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    told = measured(floor, job)
    assert sorted({kind for each in told for kind in each["kinds"]}) == kinds
    assert not any(each["found"] for each in told) and len(rows(floor)) == len(told)
    again = floor.run(floor.order(recipe(step)))
    assert again.state == "succeeded" and again.plan is not None, again.error_detail
    assert again.plan["statistics"]["missing"] == []
    assert all(each["found"] for each in measured(floor, again))
    assert job.result is not None and again.result is not None
    assert weights(Path(job.result["folder"])) == weights(Path(again.result["folder"]))


def test_other_settings_are_measured_anew_where_they_matter(floor: Floor) -> None:
    for step, is_found in (
        (TRAINED, False),
        ({**TRAINED, "scale": 0.5}, True),
        ({**TRAINED, "sparsity": 0.1}, False),
    ):
        job = floor.run(floor.order(recipe(step)))
        assert job.state == "succeeded", job.error_detail
        assert {each["found"] for each in measured(floor, job)} == {is_found}


def test_a_killed_worker_costs_the_block_it_was_in(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = floor.run(floor.order(recipe("regmean_pp")))
    assert straight.result is not None, straight.error_detail
    shutil.rmtree(store_of(floor) / straight.tenant_id)
    ran: list[str] = []
    run = Stage.run

    def counted(stage: Stage, **options: Any) -> None:
        ran.append(stage.path)
        if len(ran) == 11:  # the third block of six, in which each model runs twice
            raise Killed
        run(stage, **options)

    monkeypatch.setattr(Stage, "run", counted)
    job_id = floor.order(recipe("regmean_pp"))
    with pytest.raises(Killed):
        floor.run(job_id)
    with floor.sessions.begin() as session:
        let_lease_run_out(session, job_id)
    assert recover(floor.sessions.begin) == [job_id]
    job = floor.run(job_id)
    assert (job.state, job.attempt) == ("succeeded", 2), job.error_detail
    assert len(ran) == 6 * 4 + 2 + 1, "only the run that was cut off was done again"
    assert job.result is not None
    assert weights(Path(job.result["folder"])) == weights(Path(straight.result["folder"]))


def test_statistics_of_an_adapter_are_its_own(floor: Floor) -> None:
    root = floor.hub.store.root / "team"
    shapes = {"model.layers.0.self_attn.q_proj": (64, 64)}
    for number in (1, 2):
        tiny.lora(root / f"adapter{number}", shapes, seed=number)
    for number, is_found in ((1, False), (1, True), (2, False)):
        sources = [{"id": "a", "model": "team/base", "adapter": f"team/adapter{number}"}]
        job = floor.run(floor.order(recipe("regmean", sources=sources)))
        assert job.state == "succeeded", (job.error_detail, job.error_findings)
        assert [each["found"] for each in measured(floor, job)] == [is_found]
    sums = {read_manifest(store_of(floor) / job.tenant_id / row.digest).model_sha256 for row in rows(floor)}
    assert len(sums) == 2


def test_what_cannot_be_run_beside_each_other_is_refused_by_the_plan(floor: Floor) -> None:
    steps = [{"method": "trim", "scope": "global"}, {"method": "regmean_pp"}]
    job = floor.run(floor.order(recipe(*steps)))
    assert job.state == "failed"
    found = [each for each in job.error_findings or () if each["code"] == "joint_statistics"]
    assert found and "/steps/0/scope" in json.dumps(found)
