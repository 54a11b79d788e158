"""``POST /v1/jobs/{id}/append``: which results a model can join, and what is ordered then."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import create_app
from api.deps import THREADS
from hub.errors import Unavailable
from jobs import lifecycle
from jobs.planning import Planner
from settings import Settings
from tests.api.conftest import Who

STATE = {"method": "opcm", "models": 1, "settings": {"lengths_so_far": 3.0, "factor_so_far": 1.0}}


def ordered(api: TestClient, **recipe: Any) -> str:
    document = {"base": "base", "sources": [{"id": "a", "model": "expert1"}], "steps": ["opcm"], **recipe}
    answer = api.post("/v1/jobs", json={"recipe": document})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def end(sessions: Any, job_id: str, result: dict[str, Any] | None) -> None:
    with sessions() as session:
        job = lifecycle.claim(session, job_id, "worker", 60)
        assert job is not None
        fence = lifecycle.fence_of(job)
        if result is None:
            lifecycle.fail(session, fence, "disk_full", "The disk is full.")
        else:
            lifecycle.succeed(session, fence, result)


@pytest.fixture
def folder(model_root: Path, tmp_path: Path) -> Path:
    """Where a result is kept, outside all allowed roots."""
    shutil.copytree(model_root / "expert1", tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def made(api: TestClient, sessions: sessionmaker[Session], folder: Path) -> str:
    """A job that has merged one model."""
    job_id = ordered(api)
    end(sessions.begin, job_id, {"folder": str(folder), "state": STATE})
    return job_id


def test_a_model_joins_by_an_ordinary_merge_job(api: TestClient, made: str) -> None:
    body = {"model": "expert2", "weight": 0.5, "metadata": {"team": "nlp"}, "output": {"repo": "acme/more"}}
    answer = api.post(f"/v1/jobs/{made}/append", json=body)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["method"], job["metadata"]) == ("merge", "opcm", {"team": "nlp"})
    assert job["output"]["repo"] == "acme/more"
    earlier, joined = job["recipe"]["sources"]
    assert (earlier["id"], earlier["model"], earlier["stands_for"]) == ("so_far", made, 1)
    assert (joined["id"], joined["model"], joined["weight"]) == ("joined", "expert2", 0.5)
    assert job["recipe"]["steps"] == [{"method": "opcm", "lengths_so_far": 3.0, "factor_so_far": 1.0}]
    assert [each["role"] for each in job["plan"]["inputs"]] == ["base", "so_far", "joined"]


def test_the_same_key_appends_once(api: TestClient, made: str) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = (
        api.post(f"/v1/jobs/{made}/append", json={"model": "expert2"}, headers=headers) for _ in range(2)
    )
    assert first.json()["id"] == second.json()["id"]
    other = api.post(f"/v1/jobs/{made}/append", json={"model": "expert1"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def refused(api: TestClient, job_id: str, **body: Any) -> tuple[int, str, str]:
    answer = api.post(f"/v1/jobs/{job_id}/append", json={"model": "expert2", **body})
    told = answer.json()
    return answer.status_code, told["code"], told["detail"] + str(told.get("errors", ""))


def test_a_job_that_made_nothing_is_refused(api: TestClient, sessions: sessionmaker[Session]) -> None:
    job_id = ordered(api)
    status, code, detail = refused(api, job_id)
    assert (status, code) == (409, "illegal_state") and "queued" in detail
    end(sessions.begin, job_id, None)
    assert refused(api, job_id)[:2] == (409, "illegal_state")
    assert refused(api, "job_nobodys")[:2] == (404, "not_found")


def test_a_result_of_another_method_is_refused(api: TestClient, sessions: sessionmaker[Session]) -> None:
    job_id = ordered(api, steps=["linear"])
    end(sessions.begin, job_id, {"repo": "acme/merged", "commit": "c" * 40})
    status, code, detail = refused(api, job_id)
    assert (status, code) == (422, "append_refused")
    assert "linear" in detail and "opcm" in detail


def test_a_result_without_its_state_is_refused(api: TestClient, sessions: sessionmaker[Session]) -> None:
    job_id = ordered(api)
    end(sessions.begin, job_id, {"repo": "acme/merged", "commit": "c" * 40})
    status, code, detail = refused(api, job_id)
    assert (status, code) == (422, "append_refused") and "nothing was kept" in detail


def test_a_model_of_another_base_is_refused_by_its_tensors(api: TestClient, made: str) -> None:
    status, code, detail = refused(api, made, model="wide")
    assert (status, code) == (422, "plan_refused") and "joined" in detail


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"model": None}, "name the model"), ({"weight": "much"}, "/weight"), ({"nonsense": 1}, "/nonsense"),
     ({"id": "so_far"}, "so_far")],
)  # fmt: skip
def test_a_wrong_field_is_named(api: TestClient, made: str, body: dict[str, Any], pointer: str) -> None:
    status, _, detail = refused(api, made, **body)
    assert status == 422 and pointer in detail


def test_a_result_that_is_gone_is_told(api: TestClient, made: str, folder: Path) -> None:
    shutil.rmtree(folder)
    status, code, detail = refused(api, made)
    assert (status, code) == (422, "plan_refused") and "no longer kept" in detail


def test_any_recipe_may_name_what_a_job_has_made(api: TestClient, made: str) -> None:
    recipe = {"sources": [{"id": "a", "model": made}, {"id": "b", "model": "expert2"}], "steps": ["linear"]}
    answer = api.post("/v1/plans", json={"recipe": recipe})
    assert answer.status_code == 200, answer.text
    assert [each["repo"] for each in answer.json()["plan"]["inputs"]] == [made, "expert2"]


def test_a_slow_hub_holds_up_who_appends_and_nobody_who_reads(
    settings: Settings, anna: Who, sessions: sessionmaker[Session], folder: Path
) -> None:
    go = threading.Event()

    class SlowHub:
        def pin(self, *_: Any) -> Any:
            go.wait(20)
            raise Unavailable("the Hub does not answer")

    planner = Planner(lambda _token: SlowHub(), settings.model_roots, settings.memory_budget_bytes)  # type: ignore[arg-type,return-value]
    with TestClient(create_app(settings, planner), headers=anna.headers) as api:
        made = ordered(api)
        end(sessions.begin, made, {"folder": str(folder), "state": STATE})
        with ThreadPoolExecutor(THREADS) as callers:
            path, body = f"/v1/jobs/{made}/append", {"model": "org/slow"}
            waiting = [callers.submit(api.post, path, json=body) for _ in range(THREADS)]
            time.sleep(1)
            started = time.monotonic()
            assert api.get("/v1/jobs").status_code == 200
            assert time.monotonic() - started < 3, "planning waits 10 s for the Hub"
            go.set()
            assert {each.result().status_code for each in waiting} == {202}


def test_what_no_database_keeps_is_refused_before_anything_joins(api: TestClient, made: str) -> None:
    body = {"model": "expert2", "metadata": {"team": "a\0b"}}
    answer = api.post(f"/v1/jobs/{made}/append", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed"), answer.text
    assert answer.json()["errors"][0]["pointer"] == "/metadata/team"
