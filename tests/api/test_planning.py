"""A slow or absent Hub neither refuses nor holds up a job."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from hub.errors import RepoNotFound, Unavailable
from jobs.planning import Planner
from settings import Settings
from tests.api.conftest import ORDER, Who

HUB_ORDER = {"recipe": {"sources": [{"model": "org/a"}, {"model": "org/b"}], "steps": [{"method": "linear"}]}}


class SlowHub:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def pin(self, *_: Any) -> Any:
        self.go.wait(20)
        raise Unavailable("the Hub does not answer")


class FailingHub:
    """Answers every question with the same error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def pin(self, *_: Any) -> Any:
        raise self.error


def client_of(settings: Settings, hub: Any) -> TestClient:
    planner = Planner(lambda _token: hub, settings.model_roots, settings.memory_budget_bytes)
    return TestClient(create_app(settings, planner))


@pytest.fixture
def slow(settings: Settings, anna: Who) -> Iterator[TestClient]:
    hub = SlowHub()
    with client_of(settings.model_copy(update={"plan_timeout_seconds": 0.2}), hub) as client:
        client.headers.update(anna.headers)
        yield client
        hub.go.set()


def test_past_the_time_limit_a_job_is_accepted_to_be_resolved_by_a_worker(slow: TestClient) -> None:
    answer = slow.post("/v1/jobs", json=HUB_ORDER)
    assert answer.status_code == 202, answer.text
    assert (answer.json()["phase"], answer.json()["plan"]) == ("resolving", None)


def test_past_the_time_limit_a_plan_says_so(slow: TestClient) -> None:
    answer = slow.post("/v1/plans", json=HUB_ORDER)
    assert (answer.status_code, answer.json()["code"]) == (504, "plan_timeout")


def test_a_slow_hub_does_not_hold_up_folder_models(slow: TestClient) -> None:
    assert slow.post("/v1/jobs", json=ORDER).json()["plan"]


def test_an_absent_hub_is_left_to_the_worker_and_told_to_plans(settings: Settings, anna: Who) -> None:
    with client_of(settings, FailingHub(Unavailable("the Hub does not answer"))) as client:
        job = client.post("/v1/jobs", json=HUB_ORDER, headers=anna.headers)
        plan = client.post("/v1/plans", json=HUB_ORDER, headers=anna.headers)
    assert (job.status_code, job.json()["phase"]) == (202, "resolving")
    assert (plan.status_code, plan.json()["code"]) == (503, "hub_unavailable")
    assert int(plan.headers["retry-after"]) >= 1


def test_a_missing_repository_is_refused_where_it_is_named(settings: Settings, anna: Who) -> None:
    with client_of(settings, FailingHub(RepoNotFound("there is no repository org/a"))) as client:
        answer = client.post("/v1/jobs", json=HUB_ORDER, headers=anna.headers)
    assert answer.status_code == 422
    found = {(each["pointer"], each["code"]) for each in answer.json()["errors"]}
    assert ("/recipe/sources/0/model", "repo_not_found") in found


def test_the_hub_is_asked_with_the_callers_own_token(settings: Settings, anna: Who, bert: Who) -> None:
    asked: list[str | None] = []

    def hub(token: str | None) -> Any:
        asked.append(token)
        return FailingHub(RepoNotFound("no"))

    planner = Planner(hub, settings.model_roots, settings.memory_budget_bytes)
    with TestClient(create_app(settings, planner)) as client:
        body = {"name": "mine", "token": "hf_canary"}
        made = client.post("/v1/hub-credentials", json=body, headers=anna.headers).json()
        order = HUB_ORDER | {"hub_credential": made["id"]}
        client.post("/v1/plans", json=order, headers=anna.headers)
        stolen = client.post("/v1/plans", json=order, headers=bert.headers)
    assert asked == ["hf_canary"]
    assert stolen.status_code == 404


def test_a_disk_that_other_jobs_fill_for_now_does_not_refuse_an_order(
    settings: Settings, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    shard = settings.scratch / "jobs" / "job_1" / "output" / "model.safetensors"
    shard.parent.mkdir(parents=True)
    assert api.post("/v1/jobs", json=ORDER).json()["errors"][0]["code"] == "disk_too_small"
    shard.write_bytes(bytes(4 << 20))
    assert api.post("/v1/jobs", json=ORDER).status_code == 202
