"""The dispatcher's rounds over the rows."""

import time

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from db import artifacts, removals, scores
from db import jobs as rows
from jobs.keyring import Keyring
from jobs.lifecycle import delete, fail, heartbeat, request_cancel, succeed
from jobs.submit import retry
from jobs.webhooks import create_endpoint, send_test
from tests.factories import (
    RECIPE,
    TEST_SECRET,
    let_lease_run_out,
    make_caller,
    make_job,
    make_rules,
    make_running,
)
from worker.sweep import ENOUGH, Doorbell, Keeping, Recovery, expire, prune, recover

DAY = 86_400.0


def test_jobs_that_ended_long_ago_are_deleted_where_that_is_asked_for(
    sessions: sessionmaker[Session],
) -> None:
    """A retry before what it retried, and nothing that another job reads, waits, runs or is to be told."""
    with sessions.begin() as session:
        caller = make_caller(session)
        old, new, read = (succeed(session, make_running(session)[1], {}) for _ in range(3))
        failed = fail(session, make_running(session)[1], "no", "no")
        again = retry(session, caller, failed, make_rules())
        request_cancel(session, again)
        reader, running = make_job(session), make_running(session)[0]
        webhook = {"url": "https://example.com/", "events": ["merge.succeeded"]}
        untold = succeed(session, make_running(session, webhook=webhook)[1], {})
        inputs = [{"role": "base", "kind": "folder", "repo": f"/data/artifacts/{read.id}"}]
        rows.put_inputs(session, reader.id, inputs)
        session.execute(
            text("UPDATE job SET finished_at = finished_at - interval '2 h' WHERE id <> :id"), {"id": new.id}
        )
    keeping = Keeping(scores=DAY, deliveries=DAY, jobs=3600)
    assert prune(sessions.begin, Keeping(DAY, DAY)).get("jobs") is None
    assert prune(sessions.begin, keeping)["jobs"] == 3
    assert prune(sessions.begin, keeping)["jobs"] == 0
    with sessions() as session:
        left = set(session.scalars(text("SELECT id FROM job")))
        assert left == {new.id, read.id, reader.id, running.id, untold.id}
        assert removals.among(session, {old.id, failed.id, again.id}) == {old.id, failed.id, again.id}


def test_however_many_jobs_ended_long_ago_they_are_deleted(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "SWEEP", 2)
    with sessions.begin() as session:
        ids = [succeed(session, make_running(session)[1], {}).id for _ in range(5)]
        session.execute(text("UPDATE job SET finished_at = finished_at - interval '2 h'"))
    keeping = Keeping(scores=DAY, deliveries=DAY, jobs=3600)
    asked = iter([False, True])
    assert prune(sessions.begin, keeping, lambda: next(asked))["jobs"] == 1
    assert prune(sessions.begin, keeping)["jobs"] == 4
    with sessions() as session:
        assert removals.among(session, ids) == set(ids)


def test_uploads_that_nobody_names_are_forgotten(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        names = ("unused", "scored on", "uploaded again", "read", "waited for", "measured on")
        ids = [
            artifacts.put_dataset(session, caller.tenant_id, name, name, name.encode()).id for name in names
        ]
        scores = [{"name": "s", "kind": "exact_match", "data": {"dataset": each}} for each in ids]
        make_job(session, caller, evaluate={"sets": [scores[4]]})
        over = make_job(session, caller, evaluate={"sets": [scores[0]]})
        request_cancel(session, over)
        make_job(session, caller, recipe={**RECIPE, "calibration": {"data": {"dataset": ids[5]}}})
        session.execute(text("UPDATE dataset SET last_used_at = now() - interval '2 days'"))
        make_job(session, caller, evaluate={"sets": [scores[1]]})
        artifacts.put_dataset(session, caller.tenant_id, "again", names[2], b"")
        assert artifacts.use_dataset(session, caller.tenant_id, ids[3], with_body=True) is not None
    assert prune(sessions.begin, Keeping(DAY, DAY, datasets=DAY))["datasets"] == 1
    with sessions() as session:
        assert {each.id for each in artifacts.datasets(session, caller.tenant_id)} == set(ids[1:])


def queued(sessions: sessionmaker[Session]) -> str:
    with sessions.begin() as session:
        return make_job(session).id


def test_a_ready_job_is_announced_once_and_again_when_nobody_came(sessions: sessionmaker[Session]) -> None:
    job_id = queued(sessions)
    rung: list[tuple[str, str]] = []
    doorbell = Doorbell(sessions.begin, lambda *ring: rung.append(ring), after_seconds=60)
    assert doorbell.announce_due() == 1
    assert doorbell.announce_due() == 0
    with sessions.begin() as session:
        session.execute(text("UPDATE job SET announced_at = clock_timestamp() - interval '61 seconds'"))
    assert doorbell.announce_due() == 1
    assert rung == [(job_id, "cpu")] * 2


def test_the_row_is_committed_before_the_message_goes_out(sessions: sessionmaker[Session]) -> None:
    queued(sessions)

    def ring(job_id: str, _queue: str) -> None:
        with sessions() as session:
            job = rows.get(session, job_id)
            assert job is not None and job.announced_at is not None

    assert Doorbell(sessions.begin, ring, 60).announce_due() == 1


def test_what_the_broker_did_not_take_is_rung_in_the_next_round(sessions: sessionmaker[Session]) -> None:
    first, second = queued(sessions), queued(sessions)
    rung: list[str] = []
    is_down = True

    def ring(job_id: str, _queue: str) -> None:
        if is_down and rung:
            raise ConnectionError("the broker is away")
        rung.append(job_id)

    doorbell = Doorbell(sessions.begin, ring, 60)
    with pytest.raises(ConnectionError):
        doorbell.announce_due()
    assert rung == [first]
    is_down = False
    assert doorbell.announce_due() == 1
    assert rung == [first, second]


def test_a_broker_that_is_away_for_long_hears_of_each_job_once(sessions: sessionmaker[Session]) -> None:
    job_id = queued(sessions)
    rung: list[str] = []
    is_down = True

    def ring(job_id: str, _queue: str) -> None:
        if is_down:
            raise ConnectionError("the broker is away")
        rung.append(job_id)

    doorbell = Doorbell(sessions.begin, ring, after_seconds=0)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            doorbell.announce_due()
    is_down = False
    assert doorbell.announce_due() == 1
    assert rung == [job_id]


def test_a_queue_that_nobody_empties_is_not_filled_for_ever(sessions: sessionmaker[Session]) -> None:
    lying: list[str] = []
    doorbell = Doorbell(
        sessions.begin, lambda job_id, _: lying.append(job_id), 0, lambda _: len(lying) + ENOUGH - 3
    )
    old = queued(sessions)
    for _ in range(5):
        doorbell.announce_due()
    assert lying == [old] * 3
    new = queued(sessions)
    doorbell.announce_due()
    assert lying == [old] * 3 + [new]
    lying.clear()
    doorbell.announce_due()
    assert lying == [old, new]


def test_a_lost_job_comes_back_to_the_queue_and_is_announced_at_once(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        job, _ = make_running(session)
        let_lease_run_out(session, job.id)
    assert recover(sessions.begin) == [job.id]
    assert recover(sessions.begin) == []
    rung: list[str] = []
    assert Doorbell(sessions.begin, lambda job_id, _: rung.append(job_id), 60).announce_due() == 1
    assert rung == [job.id]


def test_a_clock_that_is_set_back_does_not_keep_a_dead_worker_in_office(
    sessions: sessionmaker[Session],
) -> None:
    """An hour back is as if everything had been written an hour ahead."""
    with sessions.begin() as session:
        job, _ = make_running(session, lease_seconds=0.05)
        ahead = (
            "heartbeat_at = heartbeat_at + interval '1 hour', lease_until = lease_until + interval '1 hour'"
        )
        session.execute(text(f"UPDATE job SET {ahead}"))
    assert recover(sessions.begin) == []
    time.sleep(0.06)
    assert recover(sessions.begin) == [job.id]


def test_a_database_that_was_away_for_long_costs_no_attempt(sessions: sessionmaker[Session]) -> None:
    """Whoever is still there renews the lease before anything is taken back; that rounds take long does not
    keep a dead worker in office.
    """
    time_now, rules = [0.0], make_rules(max_attempts=1)
    recovery = Recovery(sessions.begin, 60.0, lambda: time_now[0])
    with sessions.begin() as session:
        (lost, _), (there, fence) = (make_running(session, rules=rules) for _ in range(2))
        for job in (lost, there):
            let_lease_run_out(session, job.id)
    time_now[0] = 31.0
    assert recovery.look() == []
    with sessions.begin() as session:
        heartbeat(session, fence, 60.0)
    time_now[0] = 66.0
    assert recovery.look() == [lost.id]
    for time_now[0] in (90.0, 110.0, 127.0):
        assert recovery.look() == []
    with sessions.begin() as session:
        let_lease_run_out(session, there.id)
    assert recovery.look() == [there.id]
    with sessions() as session:
        found = rows.page(session, lost.tenant_id, limit=5)
    ends = {each.id: (each.state, each.max_attempts) for each in found}
    assert ends == {lost.id: ("queued", 2), there.id: ("failed", 1)}


def test_a_clock_that_is_set_forward_makes_no_job_lost_whose_worker_is_there(
    sessions: sessionmaker[Session],
) -> None:
    """The database's clock by which leases run out: an hour's jump is the end of them all."""
    readings = [0.0, 10.0, 3_620.0, 3_630.0]
    recovery = Recovery(sessions.begin, 60.0, lambda: 0.0, lambda _: readings.pop(0))
    assert recovery.look() == recovery.look() == []
    with sessions.begin() as session:
        job, fence = make_running(session)
        let_lease_run_out(session, job.id)
    assert recovery.look() == []
    with sessions.begin() as session:
        heartbeat(session, fence, 60.0)
    assert recovery.look() == []


def test_a_job_nobody_started_in_time_expires(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        job = make_job(session, expires_in=100)
        kept = make_job(session, expires_in=200)
        session.execute(text("UPDATE job SET expires_at = clock_timestamp() WHERE id = :id"), {"id": job.id})
    assert expire(sessions.begin) == [job.id]
    with sessions() as session:
        states = [getattr(rows.get(session, each.id), "state", None) for each in (job, kept)]
    assert states == ["expired", "queued"]


def test_old_scores_and_messages_are_forgotten_and_what_waits_is_not(
    sessions: sessionmaker[Session],
) -> None:
    with sessions.begin() as session:
        tenant = make_caller(session).tenant_id
        endpoint, _ = create_endpoint(session, Keyring(TEST_SECRET), tenant, "https://example.com/hook")
        states = ("delivered", "dead", "pending", "delivered")
        ids = [send_test(session, endpoint).id for _ in states]
        for message, state in zip(ids, states, strict=True):
            session.execute(
                text("UPDATE webhook_delivery SET state = :state WHERE id = :id"),
                {"state": state, "id": message},
            )
        for message in ids[:3]:
            session.execute(
                text("UPDATE webhook_delivery SET created_at = now() - interval '31 s' WHERE id = :id"),
                {"id": message},
            )
        scores.put(session, tenant, "k", [], model="m", task="t")
        old, new = (make_running(session)[1] for _ in range(2))
        for fence in (old, new):
            delete(session, succeed(session, fence, {}))
        session.execute(
            text("UPDATE removed_job SET created_at = now() - interval '366 days' WHERE job_id = :id"),
            {"id": old.job_id},
        )
        session.execute(text("UPDATE known_score SET last_used_at = now() - interval '61 s'"))
    keeping = Keeping(scores=60, deliveries=30)
    assert prune(sessions.begin, keeping) == {"answers": 0, "scores": 1, "deliveries": 2, "removals": 1}
    assert prune(sessions.begin, keeping) == {"answers": 0, "scores": 0, "deliveries": 0, "removals": 0}
    with sessions() as session:
        assert set(session.scalars(text("SELECT id FROM webhook_delivery"))) == set(ids[2:])
        assert removals.among(session, {old.job_id, new.job_id}) == {new.job_id}
