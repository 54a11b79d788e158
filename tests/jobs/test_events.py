"""Events are numbered, announced on commit only, and copied to the endpoints that want them."""

import json
import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import webhooks as rows
from jobs import announcements, events, lifecycle, recording, webhooks
from jobs.keyring import Keyring
from tests.factories import make_caller, make_job, make_running


@pytest.fixture
def ears(postgres_url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("LISTEN mergery_job")
        yield connection


def heard(ears: psycopg.Connection[tuple[object, ...]], seconds: float = 0.3) -> list[str]:
    return [notice.payload for notice in ears.notifies(timeout=seconds)]


def test_numbers_have_no_gap_even_when_two_write_at_once(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        job, _ = make_running(session)

    def write() -> None:
        for _ in range(10):
            with sessions.begin() as session:
                mine = session.get_one(type(job), job.id)
                events.record(session, mine, "merge.warning", {})

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions() as session:
        found = events.after(session, job.id, 0)
    assert [event.seq for event in found] == list(range(1, 33))


def test_reading_goes_on_after_a_number(session: Session) -> None:
    job, fence = make_running(session)
    lifecycle.enter_phase(session, fence, "merging")
    assert [event.type for event in events.after(session, job.id, 1)] == ["merge.started", "merge.phase"]
    assert [event.seq for event in events.after(session, job.id, 1, limit=1)] == [2]
    assert events.after(session, job.id, 3) == []


def test_a_commit_announces_the_job_once(
    sessions: sessionmaker[Session], ears: psycopg.Connection[tuple[object, ...]]
) -> None:
    with sessions.begin() as session:
        job, fence = make_running(session)
    assert heard(ears) == [job.id]
    with sessions.begin() as session:
        lifecycle.report_progress(session, fence, {"fraction": 0.1})
    assert heard(ears) == [job.id]
    with sessions.begin() as session:
        lifecycle.heartbeat(session, fence, 60)
    assert heard(ears) == []


def test_a_rollback_announces_nothing_and_leaves_nothing(
    sessions: sessionmaker[Session], ears: psycopg.Connection[tuple[object, ...]], keyring: Keyring
) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        endpoint, _ = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org/hook")
    with sessions() as session:
        job_id = make_job(session, caller).id
        assert rows.deliveries(session, endpoint.id, limit=9)
        session.rollback()
        assert rows.deliveries(session, endpoint.id, limit=9) == []
        assert events.after(session, job_id, 0) == []
    assert heard(ears) == []


def test_endpoints_get_what_they_asked_for_and_progress_only_by_name(
    session: Session, keyring: Keyring
) -> None:
    caller = make_caller(session)

    def endpoint(*wanted: str) -> str:
        row, _ = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://a.example", wanted)
        return row.id

    everything, ends, progress = (
        endpoint("*"),
        endpoint("merge.failed", "merge.succeeded"),
        endpoint("merge.progress"),
    )
    strangers = make_caller(session, "other")
    webhooks.create_endpoint(session, keyring, strangers.tenant_id, "https://b.example", ["*"])
    job = make_job(session, caller)
    claimed = lifecycle.claim(session, job.id, "w", 60)
    assert claimed is not None
    fence = lifecycle.fence_of(claimed)
    lifecycle.report_progress(session, fence, {"fraction": 0.5})
    recording.record_evaluation(session, fence, {"name": "wiki", "kind": "perplexity", "scores": []})
    lifecycle.succeed(session, fence, {"repo": "org/out"})

    def got(endpoint_id: str) -> list[str]:
        return [each.type for each in reversed(rows.deliveries(session, endpoint_id, limit=9))]

    assert got(everything) == ["merge.queued", "merge.started", "evaluation.completed", "merge.succeeded"]
    assert got(ends) == ["merge.succeeded"]
    assert got(progress) == ["merge.progress"]


def test_a_job_s_own_webhook_hears_of_that_job_and_its_retries_alone(session: Session) -> None:
    from jobs.submit import retry
    from tests.factories import make_rules

    caller = make_caller(session)
    job = make_job(session, caller, webhook={"url": "https://a.example/x"})
    make_job(session, caller)
    lifecycle.request_cancel(session, job)
    again = retry(session, caller, job, make_rules())
    due = webhooks.claim_due(session, make_rules().keyring, "w")
    told = [json.loads(each.body) for each in due]
    assert [(each["type"], each["data"]["id"]) for each in told] == [
        ("merge.queued", job.id),
        ("merge.cancelled", job.id),
        ("merge.queued", again.id),
    ]
    assert webhooks.list_endpoints(session, caller.tenant_id) == []


def test_a_message_stays_below_twenty_kilobytes(session: Session, keyring: Keyring) -> None:
    caller = make_caller(session)
    endpoint, _ = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://a.example", ["*"])
    metadata = {f"key{number}": "ü" * 512 for number in range(16)}
    job = make_job(session, caller, metadata=metadata)
    claimed = lifecycle.claim(session, job.id, "w", 60)
    assert claimed is not None
    findings = [{"code": "missing", "message": "x" * 500} for _ in range(200)]
    lifecycle.fail(session, lifecycle.fence_of(claimed), "plan_refused", "y" * 9000, findings)
    bodies = [each.body for each in rows.deliveries(session, endpoint.id, limit=9)]
    assert all(len(body.encode()) < announcements.LARGEST_BODY for body in bodies)
    failed = json.loads(bodies[0])
    assert failed["data"]["truncated"] and failed["data"]["error"]["code"] == "plan_refused"
