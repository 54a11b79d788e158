"""Submitting, reading, cancelling and retrying jobs."""

from collections.abc import Callable

import pytest
import yaml
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from jobs import lifecycle, recording
from tests.api.conftest import ORDER, Who

MERGEKIT = """
merge_method: ties
base_model: base
models:
  - {model: expert1, parameters: {weight: 0.6, density: 0.5}}
  - {model: expert2, parameters: {weight: 0.4, density: 0.5}}
dtype: float32
"""


def end(sessions: sessionmaker[Session], job_id: str, *, well: bool) -> None:
    with sessions.begin() as session:
        job = lifecycle.claim(session, job_id, "worker", 60)
        assert job is not None
        fence = lifecycle.fence_of(job)
        if well:
            lifecycle.succeed(session, fence, {"repo": "acme/merged"})
        else:
            lifecycle.fail(session, fence, "disk_full", "The disk is full.")


def test_a_submitted_job_is_accepted_planned_and_found_again(api: TestClient) -> None:
    answer = api.post("/v1/jobs", json=ORDER)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["phase"], job["method"], job["queue"]) == ("queued", None, "linear", "cpu")
    assert job["plan"]["counts"]["tensors"] > 10
    assert api.get(answer.headers["location"]).json() == job


def test_a_mergekit_yaml_is_accepted_and_translated(api: TestClient) -> None:
    headers = {"Content-Type": "application/yaml"}
    query = {"repo": "acme/kit", "priority": "3", "metadata[team]": "nlp"}
    answer = api.post("/v1/jobs", content=MERGEKIT, headers=headers, params=query)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["output"]["repo"] == "acme/kit"
    assert (job["priority"], job["metadata"]) == (3, {"team": "nlp"})
    assert [each["weight"] for each in job["recipe"]["sources"]] == [0.6, 0.4]
    assert job["translation"]


def test_a_whole_order_may_be_yaml(api: TestClient) -> None:
    headers, order = {"Content-Type": "application/yaml"}, yaml.safe_dump(ORDER)
    job = api.post("/v1/jobs", content=order, headers=headers).json()
    sent = api.post("/v1/jobs", json=ORDER).json()
    assert [job[each] for each in ("recipe", "output", "metadata")] == [
        sent[each] for each in ("recipe", "output", "metadata")
    ]
    wrong = api.post("/v1/jobs", content=order.replace("linear", "liner"), headers=headers).json()
    assert wrong["errors"][0]["pointer"] == "/recipe/steps/0/method"
    twice = api.post("/v1/jobs", content=order, headers=headers, params={"repo": "acme/other"})
    assert (twice.status_code, "leave out the parameter 'repo'" in twice.json()["detail"]) == (422, True)


def test_a_recipe_without_its_order_is_told_where_it_belongs(api: TestClient) -> None:
    answer = api.post("/v1/jobs", json=ORDER["recipe"])
    assert (
        answer.json()["errors"][0]["detail"] == 'this is a recipe without its order: send {"recipe": {...}}'
    )


STAGES = """
name: first
merge_method: linear
models: [{model: expert1, parameters: {weight: 1}}, {model: expert2, parameters: {weight: 1}}]
dtype: float32
---
merge_method: task_arithmetic
base_model: base
models: [{model: first, parameters: {weight: 0.5}}]
dtype: float32
"""


def test_several_documents_of_mergekit_become_one_job_with_stages(api: TestClient) -> None:
    answer = api.post("/v1/jobs", content=STAGES, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["recipe"]["sources"][0]["model"] == "stage:first"
    assert [each["role"] for each in job["plan"]["inputs"]] == ["base", "first.m0", "first.m1"]
    stage = job["plan"]["stages"]["first"]
    assert (stage["written"], stage["steps"][0]["method"]) == (False, "linear")
    page = api.get(answer.headers["location"])
    assert page.json()["plan"] == job["plan"]
    listed = api.post("/v1/jobs", json={"recipe": list(yaml.safe_load_all(STAGES))})
    assert listed.json()["recipe"] == job["recipe"]


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        (STAGES.replace("expert2", "nowhere"), "/stages/first/sources/1/model"),
        (STAGES.replace("0.5", "much"), "/1/models/0/parameters/weight"),
    ],
)
def test_what_is_wrong_with_a_document_is_told_where_it_stands(
    text: str, pointer: str, api: TestClient
) -> None:
    answer = api.post("/v1/jobs", content=text, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_a_mergekit_configuration_is_accepted_inside_json(api: TestClient) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "expert1"}, {"model": "expert2"}]}
    recipe["models"][0]["parameters"] = recipe["models"][1]["parameters"] = {"weight": 0.5}  # type: ignore[index]
    answer = api.post("/v1/jobs", json={"recipe": recipe})
    assert answer.status_code == 202, answer.text
    assert answer.json()["method"] == "linear"


def test_what_cannot_work_is_refused_with_every_finding(api: TestClient) -> None:
    recipe = ORDER["recipe"] | {"sources": [{"model": "wide"}, {"model": "nowhere"}]}
    answer = api.post("/v1/jobs", json={"recipe": recipe})
    assert answer.status_code == 422
    body = answer.json()
    assert body["code"] == "plan_refused"
    assert {each["pointer"] for each in body["errors"]} == {"/recipe/sources/1/model"}
    recipe["sources"] = [{"model": "wide"}, {"model": "expert1"}]
    wrong_shapes = api.post("/v1/jobs", json={"recipe": recipe}).json()
    assert any(each.get("tensor") for each in wrong_shapes["errors"])
    assert api.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"recipe": {"sources": [], "steps": [{"method": "linear"}]}}, "/recipe/sources"),
        ({"recipe": ORDER["recipe"] | {"steps": [{"method": "liner"}]}}, "/recipe/steps/0/method"),
        ({"recipe": ORDER["recipe"] | {"bse": "x"}}, "/recipe/bse"),
        ({"priority": 1000}, "/priority"),
        ({"output": {"repo": "no-slash"}}, "/output/repo"),
        ({"output": {"repo": "me/a--b"}}, "/output/repo"),
        ({"output": {"repo": "me/model.git"}}, "/output/repo"),
        ({"output": {"repo": "me/model", "revision": "v1..2"}}, "/output/revision"),
        ({"output": {"repo": "me/model", "revision": "v1.lock"}}, "/output/revision"),
        ({"colour": "red"}, "/colour"),
        (
            {"evaluate": {"sets": [{"name": "x", "kind": "guess", "data": {"path": "p"}}]}},
            "/evaluate/sets/0/kind",
        ),
    ],
)
def test_a_wrong_field_is_named_by_its_pointer(
    api: TestClient, change: dict[str, object], pointer: str
) -> None:
    answer = api.post("/v1/jobs", json=ORDER | change)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointer in {each["pointer"] for each in answer.json()["errors"]}


@pytest.mark.parametrize(
    "sneaked",
    [
        {"state": "succeeded"},
        {"tenant_id": "ten_other"},
        {"id": "job_00000000000000000000000000"},
        {"attempt": 3},
        {"plan": {}},
        {"result": {"repo": "x/y"}},
        {"output": {"repo": "a/b", "commit_sha": "0"}},
    ],
)
def test_nobody_sets_what_is_not_theirs(api: TestClient, sneaked: dict[str, object]) -> None:
    answer = api.post("/v1/jobs", json=ORDER | sneaked)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == "extra_forbidden"


def test_cancelling_a_queued_job_ends_it_and_again_changes_nothing(api: TestClient) -> None:
    job = api.post("/v1/jobs", json=ORDER).json()
    first = api.post(f"/v1/jobs/{job['id']}/cancel")
    again = api.post(f"/v1/jobs/{job['id']}/cancel")
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["state"] == "cancelled"
    assert again.json() == first.json()


def test_cancelling_a_running_job_asks_its_worker(api: TestClient, sessions: sessionmaker[Session]) -> None:
    job = api.post("/v1/jobs", json=ORDER).json()
    with sessions.begin() as session:
        lifecycle.claim(session, job["id"], "worker", 60)
    answer = api.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")


def test_a_failed_job_tells_why_and_can_be_retried(api: TestClient, sessions: sessionmaker[Session]) -> None:
    job = api.post("/v1/jobs", json=ORDER).json()
    assert api.post(f"/v1/jobs/{job['id']}/retry").status_code == 409
    end(sessions, job["id"], well=False)
    failed = api.get(f"/v1/jobs/{job['id']}").json()
    assert failed["error"] == {"code": "disk_full", "detail": "The disk is full.", "errors": []}
    again = api.post(f"/v1/jobs/{job['id']}/retry")
    assert again.status_code == 202
    assert (again.json()["retry_of"], again.json()["state"]) == (job["id"], "queued")
    assert again.json()["recipe_sha256"] == job["recipe_sha256"]


def test_only_an_ended_job_can_be_deleted(api: TestClient, sessions: sessionmaker[Session]) -> None:
    job = api.post("/v1/jobs", json=ORDER).json()
    refused = api.delete(f"/v1/jobs/{job['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_state")
    end(sessions, job["id"], well=True)
    assert api.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert api.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_inputs_artifacts_and_scores_of_a_job_are_shown(
    api: TestClient, sessions: sessionmaker[Session]
) -> None:
    job = api.post("/v1/jobs", json=ORDER).json()
    with sessions.begin() as session:
        claimed = lifecycle.claim(session, job["id"], "worker", 60)
        assert claimed is not None
        fence = lifecycle.fence_of(claimed)
        recording.record_artifact(session, fence, "repo", "acme/merged", "ab" * 32, 12, "cd" * 20)
        scores = [
            {"subject": "base", "metric": "perplexity", "value": 9.5, "n": 10},
            {"subject": "result", "metric": "perplexity", "value": 7.5, "n": 10},
        ]
        recording.record_evaluation(session, fence, {"name": "wiki", "kind": "perplexity", "scores": scores})
    here = f"/v1/jobs/{job['id']}"
    assert [each["role"] for each in api.get(f"{here}/inputs").json()["data"]] == ["base", "a", "b"]
    artifact = api.get(f"{here}/artifacts").json()["data"][0]
    assert (artifact["uri"], artifact["size"], artifact["commit_sha"]) == ("acme/merged", 12, "cd" * 20)
    evaluation = api.get(f"{here}/evaluations").json()["data"][0]
    assert [each["subject"] for each in evaluation["scores"]] == ["result", "base"]


ACTIVITY = {
    "tower": "model.layers",
    "layer": 0,
    "class": "linear",
    "mean": 0.5,
    "low": 0.1,
    "median": 0.25,
    "high": 1.0,
    "most": 2.0,
}
SURVEY = {
    "version": 2,
    "extent": "sampled",
    "task_vectors_from": "base",
    "entries_measured": 64,
    "groups": [
        {
            "models": ["a"],
            "all": {
                "tensors": 1,
                "entries": 64,
                "norms": {"a": 2.0},
                "merged_norm": 1.0,
                "merged_norm_before": 1.5,
                "held_back": 0.75,
                "prepared": {"a": 0.5},
                "prepared_all": 0.5,
                "cosine": [[1.0]],
                "sign_conflict": 0.0,
                "changed": 0.5,
                "kept": {"a": 1.0},
                "followed": {"a": None},
            },
            "layers": [],
            "classes": [],
            "cells": [
                {
                    "tower": "model.layers",
                    "layer": 0,
                    "part": "mlp.down_proj",
                    "class": "linear",
                    "merged_norm_before": 1.5,
                    "merged_norm": 1.0,
                    "held_back": 0.75,
                    "prepared": {"a": 0.5},
                    "prepared_all": 0.5,
                }
            ],
        }
    ],
    "left_out": [{"class": "embed", "policy": "mean", "tensors": 1, "entries": 64}],
    "decoded": [{"model": "a", "scheme": "AWQ (4 bits)", "loss": "at 4 bits each weight is off by 6.7 %"}],
    "saliency": [
        {
            "model": "base",
            "kind": "mean_abs_input",
            "tokens": 1024,
            "dead_channels": 3,
            "cells": [ACTIVITY | {"part": "self_attn.k_proj", "also": ["self_attn.q_proj"]}],
            "layers": [ACTIVITY],
        }
    ],
}


def test_the_report_of_a_merge_is_shown_once_it_is_there(
    api: TestClient, sessions: sessionmaker[Session]
) -> None:
    here = api.post("/v1/jobs", json=ORDER).headers["location"]
    assert api.get(f"{here}/report").json()["code"] == "not_found"
    with sessions.begin() as session:
        claimed = lifecycle.claim(session, here.rsplit("/", 1)[1], "worker", 60)
        assert claimed is not None
        recording.record_report(session, lifecycle.fence_of(claimed), SURVEY)
    assert api.get(f"{here}/report").json() == SURVEY


def test_the_queue_position_is_told_when_asked_for(api: TestClient) -> None:
    first, second = (api.post("/v1/jobs", json=ORDER).json()["id"] for _ in range(2))
    assert api.get(f"/v1/jobs/{second}?include=queue_position").json()["queue_position"] == 2
    assert api.get(f"/v1/jobs/{first}").json()["queue_position"] is None


def test_too_many_queued_jobs_are_refused_with_a_time_to_come_back(
    api: TestClient, sessions: sessionmaker[Session], anna: Who
) -> None:
    from db import tokens

    with sessions.begin() as session:
        tenant = tokens.tenant(session, anna.caller.tenant_id)
        assert tenant is not None
        tenant.max_queued_jobs = 1
    assert api.post("/v1/jobs", json=ORDER).status_code == 202
    answer = api.post("/v1/jobs", json=ORDER)
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert int(answer.headers["retry-after"]) >= 1


def test_plans_say_what_would_happen_and_record_nothing(api: TestClient) -> None:
    answer = api.post("/v1/plans", json=ORDER)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body["plan"]["estimate"]) >= {"download_bytes", "disk_bytes", "peak_memory_bytes", "seconds"}
    assert body["recipe"]["sources"][0]["id"] == "a"
    assert api.get("/v1/jobs").json()["data"] == []


def test_usage_and_limits(api: TestClient, someone: Callable[..., Who]) -> None:
    api.post("/v1/jobs", json=ORDER)
    assert api.get("/v1/usage").json() == {"jobs": {"queued": 1}, "queued": 1}
    assert api.get("/v1/limits").json()["max_queued_jobs"] == 100
