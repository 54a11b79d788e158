"""Following a job: events as a list, as a stream that resumes, and waiting in the request."""

import json
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.deps import Desk
from jobs import lifecycle
from tests.api.conftest import ORDER, Who


def stream(url: str, who: Who, last: int | None = None) -> Iterator[dict[str, str]]:
    headers = who.headers | ({"Last-Event-ID": str(last)} if last is not None else {})
    with httpx2.stream("GET", url, headers=headers, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        message: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                message[name] = value
            elif message:
                if "event" in message:
                    yield message
                message = {}


@pytest.fixture
def job_id(client: TestClient, anna: Who) -> str:
    return str(client.post("/v1/jobs", json=ORDER, headers=anna.headers).json()["id"])


def run_to_the_end(sessions: sessionmaker[Session], job_id: str, pause: float = 0.0) -> None:
    with sessions.begin() as session:
        job = lifecycle.claim(session, job_id, "worker", 60)
        assert job is not None
        fence = lifecycle.fence_of(job)
    for phase in ("downloading", "merging"):
        time.sleep(pause)
        with sessions.begin() as session:
            lifecycle.enter_phase(session, fence, phase)
    with sessions.begin() as session:
        lifecycle.succeed(session, fence, {"repo": "acme/merged"})


def test_who_asks_for_the_head_of_a_stream_does_not_hold_the_connection(
    served: str, client: TestClient, anna: Who, job_id: str
) -> None:
    with httpx2.Client(base_url=served, headers=anna.headers, timeout=5) as caller:
        head = caller.head(f"/v1/jobs/{job_id}/events/stream")
        assert (head.status_code, head.content) == (200, b"")
        assert caller.get("/livez").status_code == 200


def test_events_are_listed_from_where_the_caller_is(
    client: TestClient, anna: Who, sessions: sessionmaker[Session], job_id: str
) -> None:
    run_to_the_end(sessions, job_id)
    client.headers.update(anna.headers)
    first = client.get(f"/v1/jobs/{job_id}/events?limit=2").json()
    assert [each["seq"] for each in first["data"]] == [1, 2]
    assert first["has_more"]
    rest = client.get(f"/v1/jobs/{job_id}/events?after=2").json()
    assert [each["seq"] for each in rest["data"]] == [3, 4, 5]
    assert not rest["has_more"]


def test_a_stream_follows_a_job_and_ends_with_it(
    served: str, anna: Who, sessions: sessionmaker[Session], app: object
) -> None:
    answer = httpx2.post(f"{served}/v1/jobs", json=ORDER, headers=anna.headers)
    job_id = answer.json()["id"]
    runner = threading.Thread(target=run_to_the_end, args=(sessions, job_id, 0.1))
    messages = stream(f"{served}/v1/jobs/{job_id}/events/stream", anna)
    first = next(messages)
    runner.start()
    started = time.monotonic()
    rest = list(messages)
    runner.join()
    assert time.monotonic() - started < 4, "woken by the database, not by the poll"
    assert [first["event"], *(each["event"] for each in rest)] == [
        "merge.queued",
        "merge.started",
        "merge.phase",
        "merge.phase",
        "merge.succeeded",
        "done",
    ]
    assert [each["id"] for each in rest[:-1]] == ["2", "3", "4", "5"]
    assert json.loads(rest[0]["data"])["data"]["attempt"] == 1


def test_a_broken_stream_goes_on_after_the_last_event(
    served: str, anna: Who, sessions: sessionmaker[Session]
) -> None:
    job_id = httpx2.post(f"{served}/v1/jobs", json=ORDER, headers=anna.headers).json()["id"]
    run_to_the_end(sessions, job_id)
    url = f"{served}/v1/jobs/{job_id}/events/stream"
    assert [each.get("id") for each in stream(url, anna, last=3)] == ["4", "5", None]
    over = httpx2.get(url, headers=anna.headers | {"Last-Event-ID": "5"})
    assert (over.status_code, over.content) == (204, b"")


def test_a_stream_without_the_listener_still_polls(
    served: str, anna: Who, sessions: sessionmaker[Session], app: object
) -> None:
    desk: Desk = app.state.desk  # type: ignore[attr-defined]
    desk.poll_seconds = 0.1
    desk.feed.listen = lambda should_stop: iter(())
    job_id = httpx2.post(f"{served}/v1/jobs", json=ORDER, headers=anna.headers).json()["id"]
    messages = stream(f"{served}/v1/jobs/{job_id}/events/stream", anna)
    next(messages)
    run_to_the_end(sessions, job_id)
    assert [each["event"] for each in messages][-1] == "done"


def test_another_tenants_stream_is_not_found(served: str, anna: Who, bert: Who) -> None:
    job_id = httpx2.post(f"{served}/v1/jobs", json=ORDER, headers=anna.headers).json()["id"]
    answer = httpx2.get(f"{served}/v1/jobs/{job_id}/events/stream", headers=bert.headers)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_stream_ends_when_its_key_is_revoked(
    served: str, anna: Who, someone: Callable[..., Who], sessions: sessionmaker[Session]
) -> None:
    other = someone("acme", "merges:read")
    job_id = httpx2.post(f"{served}/v1/jobs", json=ORDER, headers=anna.headers).json()["id"]
    messages = stream(f"{served}/v1/jobs/{job_id}/events/stream", other)
    assert next(messages)["event"] == "merge.queued"
    httpx2.delete(f"{served}/v1/api-keys/{other.caller.key_id}", headers=anna.headers)
    run_to_the_end(sessions, job_id)
    assert list(messages) == []


def test_streams_have_a_limit(client: TestClient, anna: Who, job_id: str) -> None:
    desk: Desk = client.app.state.desk  # type: ignore[attr-defined]
    desk.feed.most = 0
    answer = client.get(f"/v1/jobs/{job_id}/events/stream", headers=anna.headers)
    assert answer.status_code == 429


def test_a_request_can_wait_for_the_end(served: str, anna: Who, sessions: sessionmaker[Session]) -> None:
    def run_when_there() -> None:
        with httpx2.Client(base_url=served, headers=anna.headers) as client:
            while not (found := client.get("/v1/jobs").json()["data"]):
                time.sleep(0.02)
        run_to_the_end(sessions, found[0]["id"])

    runner = threading.Thread(target=run_when_there)
    runner.start()
    headers = anna.headers | {"Prefer": "wait=30"}
    answer = httpx2.post(f"{served}/v1/jobs", json=ORDER, headers=headers, timeout=40)
    runner.join()
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=30"
    assert (answer.json()["state"], answer.json()["result"]) == ("succeeded", {"repo": "acme/merged"})


def test_waiting_ends_when_its_time_is_over(client: TestClient, anna: Who) -> None:
    started = time.monotonic()
    answer = client.post("/v1/jobs", json=ORDER, headers=anna.headers | {"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - started < 4
    assert answer.json()["state"] == "queued"
