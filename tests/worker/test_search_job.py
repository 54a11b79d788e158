"""A search over the settings of a recipe: in memory, row by row, resumed, and the same as merging to disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db import artifacts, evaluations, trials
from db.models.job import Job
from jobs.credentials import store_token
from jobs.keyring import Keyring
from jobs.kinds import begun
from jobs.request import SearchRequest, read_order
from jobs.searching import PointRequest, as_sent, point_order
from jobs.submit import retry, submit
from tests.factories import TEST_SECRET, make_caller, make_rules
from tests.worker.conftest import TOKEN, Floor
from tests.worker.test_score_job import write_texts
from worker import candidates

SEARCH = {
    "method": "grid",
    "settings": {"levels": 3},
    "space": {"scale": {"at": "steps.task_arithmetic.scale", "low": 0, "high": 1}},
    "objectives": [{"set": "texts"}],
    "budget": {"evaluations": 10},
}


def order(floor: Floor, search: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    sets = [{"name": "texts", "kind": "perplexity", "data": {"path": write_texts(floor)}}]
    recipe = {
        "base": "team/base",
        "sources": [{"id": "a", "model": "team/expert1"}, {"id": "b", "model": "team/expert2"}],
        "steps": [{"method": "task_arithmetic", "scale": 1.0}],
    }
    return {
        "kind": "search",
        "recipe": recipe,
        "search": SEARCH | (search or {}),
        "evaluate": {"sets": sets},
        **more,
    }


def ordered(floor: Floor, search: dict[str, Any] | None = None, **more: Any) -> str:
    with floor.sessions.begin() as session:
        caller = make_caller(session)
        credential = store_token(session, Keyring(TEST_SECRET), caller.tenant_id, "hub", TOKEN)
        rules = make_rules(model_roots=[floor.hub.store.root / "team"])
        wanted = read_order(order(floor, search, **more) | {"hub_credential": credential.id})
        return submit(session, caller, wanted, None, rules).id


def rows(floor: Floor, job: Job) -> list[Any]:
    with floor.sessions() as session:
        return trials.of_search(session, job.root_id)


def ran(floor: Floor, job_id: str) -> Job:
    job = floor.run(job_id)
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    assert job.result is not None
    return job


def test_a_grid_finds_the_best_and_it_scores_the_same_when_it_is_merged(floor: Floor) -> None:
    job = ran(floor, ordered(floor))
    assert job.result is not None
    tried = rows(floor, job)
    assert [row.point["scale"] for row in tried] == [0.0, 0.5, 1.0]
    values = [row.told["values"][0] for row in tried]
    assert job.result["best"]["values"] == [max(values)] and job.result["ended"] == "done"
    phases = [e.data["phase"] for e in floor.events(job.id) if e.type == "search.phase"]
    assert phases == ["downloading", "searching", "finalising"]
    counts = [e.data for e in floor.events(job.id) if e.type == "search.progress" and "rows_total" in e.data]
    assert {each["rows_total"] for each in counts} == {3}  # of the grid, not of the budget
    whole = json.loads((Path(job.result["folder"]) / "search.json").read_text())
    assert [t["values"] for t in whole["trials"]] == [[v] for v in values]
    best = job.result["best"]["recipe"]
    assert best["sources"][0]["model"] == f"team/expert1@{floor.hub.head('team/expert1')}"
    evaluate = {"sets": order(floor)["evaluate"]["sets"], "parents": False}
    with floor.sessions.begin() as session:
        caller = make_caller(session)
        credential = store_token(session, Keyring(TEST_SECRET), caller.tenant_id, "hub", TOKEN)
        merge = {"kind": "merge", "recipe": best, "evaluate": evaluate, "hub_credential": credential.id}
        rules = make_rules(model_roots=[floor.hub.store.root / "team"])
        again = submit(session, caller, read_order(merge), None, rules).id
    merged = ran(floor, again)
    found = {metric: each.value for (_, metric), each in scores_of(floor, merged).items()}
    assert found["bits_per_byte"] == pytest.approx(-max(values), rel=1e-9)


def scores_of(floor: Floor, job: Job) -> dict[tuple[str, str], Any]:
    with floor.sessions() as session:
        found = evaluations.of_job(session, job.id)
    return {(s.subject, s.metric): s for evaluation, ss in found for s in ss if evaluation.name == "texts"}


def test_nothing_is_written_but_what_the_search_found(floor: Floor) -> None:
    job = ran(floor, ordered(floor))
    assert job.result is not None
    assert [path.name for path in Path(job.result["folder"]).iterdir()] == ["search.json"]
    assert not list((floor.folder / "data").rglob("model*.safetensors"))


def test_a_search_that_was_cut_off_goes_on_where_it_was(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told = candidates.Bench.told, list[str]()

    def dies(self: candidates.Bench, candidate: Any) -> Any:
        if len(told) == 2:
            raise OSError("the machine went away")
        told.append(candidate.key)
        return real(self, candidate)

    monkeypatch.setattr(candidates.Bench, "told", dies)
    job_id = ordered(floor)
    assert floor.run(job_id).state == "queued"
    monkeypatch.setattr(
        candidates.Bench, "told", lambda self, each: (told.append(each.key), real(self, each))[1]
    )
    with floor.sessions.begin() as session:
        session.execute(text("UPDATE job SET not_before = NULL"))
    job = ran(floor, job_id)
    assert len(told) == len(set(told)) == 3
    assert [row.number for row in rows(floor, job)] == [0, 1, 2]


def test_candidates_that_fail_are_told_and_the_rest_goes_on(floor: Floor) -> None:
    space = {"scale": {"at": "steps.task_arithmetic.scale", "values": [0.5, 1e300]}}
    job = ran(floor, ordered(floor, {"space": space}))
    assert job.result is not None and job.result["failed"] == 1
    assert job.result["best"]["point"] == {"scale": 0.5}
    failed = next(row.told for row in rows(floor, job) if "values" not in row.told)
    assert "NotFinite" in failed["error"]


def test_the_recipe_as_it_was_sent_is_a_trial_that_can_be_merged_like_any_other(floor: Floor) -> None:
    space = {"scale": {"at": "steps.task_arithmetic.scale", "values": [0.0, 100.0]}}
    job = ran(floor, ordered(floor, {"space": space}))
    assert job.result is not None and job.result["evaluations"] == 2
    sent = rows(floor, job)[2]
    assert (sent.number, sent.point) == (2, {}) and len(rows(floor, job)) == 3
    assert job.result["as_sent"] == {"number": 2, "values": sent.told["values"]}
    merge = point_order(job, sent, PointRequest()).recipe
    assert merge.steps[0].settings == {"scale": 1.0} and merge.sources[0].weight == 1.0
    assert merge.sources[0].model == "team/expert1" and job.result["best"]["number"] == 2
    best = job.result["best"]["recipe"]
    assert best["steps"] == merge.model_dump(mode="json")["steps"]
    assert best["sources"][0]["model"] == f"team/expert1@{floor.hub.head('team/expert1')}"


def test_a_plan_is_of_the_point_where_a_search_begins_and_its_recipe_is_told_as_it_was_sent(
    floor: Floor,
) -> None:
    space = {
        "a": {"at": "sources.a.weight", "low": 0, "high": 1},
        "norms": {"at": "steps.task_arithmetic.scale", "where": "class:norm", "low": 0, "high": 1},
    }
    asked = read_order(order(floor, {"method": "tpe", "settings": {}, "space": space}))
    assert isinstance(asked, SearchRequest)
    planned, sent = (each.model_dump(mode="json") for each in (begun(asked), asked.recipe))
    assert planned["sources"][0]["weight"] == 0.5 and planned["overrides"]
    assert as_sent(planned, asked) == sent and sent["sources"][0]["weight"] == 1.0


def test_a_search_of_failures_only_says_why(floor: Floor) -> None:
    space = {"scale": {"at": "steps.task_arithmetic.scale", "values": [1e200, 1e300]}}
    job = floor.run(ordered(floor, {"space": space}))
    assert (job.state, job.error_code) == ("failed", "search_failed")
    assert "not one candidate could be scored" in str(job.error_detail)


def test_which_sources_help_and_a_front(floor: Floor) -> None:
    switches = {"a": {"at": "sources.a"}, "b": {"at": "sources.b"}}
    job = ran(floor, ordered(floor, {"method": "greedy_soup", "settings": {}, "space": switches}))
    assert job.result is not None and set(job.result["notes"]["alone"]) == {"a", "b"}
    both = [{"set": "texts"}, {"set": "texts", "metric": "perplexity", "goal": "max"}]
    job = ran(floor, ordered(floor, {"objectives": both, "preference": [0, 1]}))
    assert job.result is not None and len(job.result["front"]) >= 2
    assert job.result["best"]["values"][1] == max(each["values"][1] for each in job.result["front"])
    with floor.sessions() as session:
        (kept,) = artifacts.of_job(session, job.id)
    whole = json.loads(Path(kept.uri).read_text())
    assert kept.kind == "front" and whole["hypervolume"]["value"] >= 0
    assert all(len(each["values"]) == 2 and each["recipe"]["steps"] for each in whole["front"])


def test_natural_niches_get_the_score_of_every_example(floor: Floor) -> None:
    space = {name: {"at": f"sources.{name}.weight", "low": 0, "high": 1} for name in "ab"}
    job = ran(
        floor,
        ordered(
            floor,
            {"method": "m2n2", "settings": {"archive": 3}, "space": space, "budget": {"evaluations": 5}},
        ),
    )
    assert job.result is not None and job.result["notes"]["without_examples"] == 0
    assert {len(row.told["examples"]) for row in rows(floor, job) if row.examples} == {6}


def test_halving_scores_parts_of_the_set(floor: Floor) -> None:
    job = ran(floor, ordered(floor, {"settings": {"levels": 4}, "halving": {"begin": 0.5, "factor": 2}}))
    assert [row.share for row in rows(floor, job)] == [0.5] * 4 + [1.0] * 2 + [
        1.0
    ]  # the last: as it was sent
    assert job.result is not None and job.result["as_sent"]["number"] == 6


def test_a_retry_finds_the_trials_of_the_job_before(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise ValueError("broken")

    real = candidates.Bench.told
    monkeypatch.setattr(
        candidates.Bench, "told", lambda self, c: real(self, c) if c.ask.point["scale"] < 0.4 else breaks()
    )
    job_id = ordered(floor)
    with floor.sessions.begin() as session:
        session.execute(text("UPDATE job SET max_attempts = 1"))
    failed = floor.run(job_id)
    assert failed.state == "failed"
    assert [row.number for row in rows(floor, failed) if row.told is not None] == [0]
    monkeypatch.setattr(candidates.Bench, "told", real)
    with floor.sessions.begin() as session:
        old = session.get(Job, job_id)
        assert old is not None
        caller = replace(make_caller(session), tenant_id=old.tenant_id)
        again = retry(session, caller, old, make_rules()).id
    job = ran(floor, again)
    assert len(rows(floor, job)) == 3 and job.root_id == job_id
