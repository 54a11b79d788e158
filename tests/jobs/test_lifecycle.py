"""Claims, leases, fences, ends: what may happen to a job, against a real PostgreSQL."""

import threading
from collections import Counter

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from db import artifacts, evaluations, jobs
from db.models.job import Job
from jobs import events, lifecycle, recording
from jobs.errors import IllegalState, LeaseLost
from jobs.lifecycle import Fence
from jobs.states import ALLOWED, State
from tests.factories import let_lease_run_out, make_caller, make_job, make_running


def types(session: Session, job: Job) -> list[str]:
    return [event.type for event in events.after(session, job.id, 0)]


def test_concurrent_workers_never_claim_the_same_job(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        ids = [make_job(session, caller).id for _ in range(40)]
    claims: list[tuple[str, str]] = []

    def work(owner: str) -> None:
        for job_id in ids:
            with sessions.begin() as session:
                if (claimed := lifecycle.claim_next(session, job_id, owner, 60)) is not None:
                    claims.append((claimed.id, owner))

    threads = [threading.Thread(target=work, args=(f"worker-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(job_id for job_id, _ in claims) == Counter(ids)


def test_claim_starts_the_job_and_counts_the_attempt(session: Session) -> None:
    job, fence = make_running(session, "worker-7")
    assert (job.state, job.phase, job.attempt, job.lease_owner) == ("running", "resolving", 1, "worker-7")
    assert job.started_at is not None
    assert fence == Fence(job.id, 1, "worker-7")
    assert types(session, job) == ["merge.queued", "merge.started"]


def test_a_job_that_must_wait_or_has_expired_is_not_claimed(session: Session) -> None:
    waiting, late = make_job(session), make_job(session)
    session.execute(
        text("UPDATE job SET not_before = now() + interval '1 hour' WHERE id = :id"), {"id": waiting.id}
    )
    past = text("UPDATE job SET expires_at = now() - interval '1 s' WHERE id = :id")
    session.execute(past, {"id": late.id})
    assert lifecycle.claim(session, waiting.id, "w", 60) is None
    assert lifecycle.claim(session, late.id, "w", 60) is None
    ready = make_job(session)
    assert [job_id for job_id, _, _ in lifecycle.announce_due(session, 60)] == [ready.id]
    assert (claimed := lifecycle.claim_next(session, late.id, "w", 60)) and claimed.id == ready.id


def test_heartbeat_extends_the_lease_by_the_database_clock(session: Session) -> None:
    job, fence = make_running(session, lease_seconds=1)
    before = job.lease_until
    beat = lifecycle.heartbeat(session, fence, 60)
    session.refresh(job)
    assert before is not None and job.lease_until is not None
    assert (job.lease_until - before).total_seconds() > 50
    assert not beat.cancel_requested


STALE = [
    lambda s, f: lifecycle.heartbeat(s, f, 60),
    lambda s, f: lifecycle.enter_phase(s, f, "merging"),
    lambda s, f: lifecycle.report_progress(s, f, {"fraction": 0.5}),
    lambda s, f: recording.record_inputs(s, f, []),
    lambda s, f: recording.record_plan(s, f, {}),
    lambda s, f: recording.record_artifact(s, f, "repo", "hub://a/b"),
    lambda s, f: recording.record_evaluation(s, f, {"name": "x", "kind": "check"}),
    lambda s, f: recording.record_warning(s, f, "x", "y"),
    lambda s, f: lifecycle.succeed(s, f, {}),
    lambda s, f: lifecycle.fail(s, f, "x", "y"),
    lambda s, f: lifecycle.finish_cancel(s, f),
    lambda s, f: lifecycle.release(s, f),
]


@pytest.mark.parametrize("write", STALE, ids=range(len(STALE)))
@pytest.mark.parametrize("stale", ["attempt", "owner"])
def test_a_stale_fence_writes_nothing(sessions: sessionmaker[Session], write, stale: str) -> None:  # type: ignore[no-untyped-def]
    with sessions.begin() as session:
        job, fence = make_running(session)
    wrong = {"attempt": Fence(fence.job_id, 0, fence.owner), "owner": Fence(fence.job_id, 1, "another")}[
        stale
    ]
    dump = text("SELECT row_to_json(job)::text FROM job WHERE id = :id")
    with sessions() as session:
        before = session.scalar(dump, {"id": job.id})
        with pytest.raises(LeaseLost):
            write(session, wrong)
        session.commit()
        assert session.scalar(dump, {"id": job.id}) == before
        assert len(events.after(session, job.id, 0)) == 2
        assert session.scalar(text("SELECT count(*) FROM artifact")) == 0


def test_phases_clear_progress_and_unknown_ones_are_refused(session: Session) -> None:
    job, fence = make_running(session)
    lifecycle.report_progress(session, fence, {"fraction": 0.5})
    lifecycle.enter_phase(session, fence, "merging")
    session.refresh(job)
    assert (job.phase, job.progress) == ("merging", {})
    with pytest.raises(IllegalState, match="phases are resolving"):
        lifecycle.enter_phase(session, fence, "thinking")


def test_progress_is_always_stored_but_is_an_event_once_a_second(session: Session) -> None:
    job, fence = make_running(session)
    for step in range(5):
        lifecycle.report_progress(session, fence, {"fraction": step / 10})
    session.refresh(job)
    assert job.progress == {"fraction": 0.4}
    assert types(session, job).count("merge.progress") == 1
    session.execute(
        text("UPDATE job SET progress_at = progress_at - interval '1.1 s' WHERE id = :id"), {"id": job.id}
    )
    lifecycle.report_progress(session, fence, {"fraction": 0.9})
    assert types(session, job).count("merge.progress") == 2


def test_success_keeps_the_result_and_frees_the_lease(session: Session) -> None:
    job, fence = make_running(session)
    lifecycle.succeed(session, fence, {"repo": "org/out", "commit_sha": "a" * 40})
    session.refresh(job)
    assert (job.state, job.lease_owner, job.result) == (
        "succeeded",
        None,
        {"repo": "org/out", "commit_sha": "a" * 40},
    )
    assert job.finished_at is not None
    with pytest.raises(LeaseLost):
        lifecycle.fail(session, fence, "late", "too late")


def test_a_retryable_failure_waits_longer_each_time_and_then_fails(session: Session) -> None:
    job, fence = make_running(session)
    waits = []
    while True:
        lifecycle.fail(session, fence, "hub_unavailable", "no answer", retryable=True)
        session.refresh(job)
        if job.state != "queued":
            break
        waits.append(
            session.scalar(
                text("SELECT extract(epoch FROM not_before - clock_timestamp()) FROM job WHERE id = :id"),
                {"id": job.id},
            )
        )
        session.execute(text("UPDATE job SET not_before = NULL WHERE id = :id"), {"id": job.id})
        again = lifecycle.claim(session, job.id, "worker-1", 60)
        assert again is not None
        fence = lifecycle.fence_of(again)
    assert [round(float(wait)) for wait in waits] == [5, 10]
    assert (job.state, job.attempt, job.error_code) == ("failed", 3, "hub_unavailable")


@pytest.mark.parametrize(
    ("asked", "attempt", "waits"),
    [(120.0, 1, 120), (1.0, 1, 5), (1e9, 1, 3600), (0, 6, 160), (0, 7, 300), (0, 1200, 300)],
)
def test_a_failure_that_says_when_to_come_back_is_not_tried_again_before(
    session: Session, asked: float, attempt: int, waits: int
) -> None:
    job, fence = make_running(session)
    job.attempt, job.max_attempts = attempt, 2000
    fence = lifecycle.fence_of(job)
    lifecycle.fail(session, fence, "hub_rate_limited", "later", retryable=True, at_least=asked)
    left = text("SELECT extract(epoch FROM not_before - clock_timestamp()) FROM job WHERE id = :id")
    assert round(float(session.scalar(left, {"id": job.id}) or 0)) == waits


def test_a_job_that_was_to_be_cancelled_is_not_failed_by_what_would_be_tried_again(session: Session) -> None:
    job, fence = make_running(session)
    lifecycle.request_cancel(session, job)
    lifecycle.fail(session, fence, "worker_lost", "the process died", retryable=True)
    session.refresh(job)
    assert (job.state, job.error_code) == ("cancelled", None)
    refused, fence = make_running(session)
    lifecycle.request_cancel(session, refused)
    lifecycle.fail(session, fence, "plan_refused", "no")
    session.refresh(refused)
    assert (refused.state, refused.error_code) == ("failed", "plan_refused")


def test_findings_of_a_refusal_are_kept(session: Session) -> None:
    job, fence = make_running(session)
    lifecycle.fail(session, fence, "plan_refused", "no", [{"code": "shape_mismatch", "tensor": "a.b"}])
    session.refresh(job)
    assert job.error_findings == [{"code": "shape_mismatch", "tensor": "a.b"}]


def test_cancelling_a_queued_job_ends_it_at_once(session: Session) -> None:
    job = make_job(session)
    assert lifecycle.request_cancel(session, job).state == "cancelled"
    assert lifecycle.claim(session, job.id, "w", 60) is None
    assert lifecycle.request_cancel(session, job).state == "cancelled"
    assert types(session, job) == ["merge.queued", "merge.cancelled"]


def test_cancelling_a_running_job_reaches_the_worker_by_its_heartbeat(session: Session) -> None:
    job, fence = make_running(session)
    assert lifecycle.request_cancel(session, job).state == "cancelling"
    assert lifecycle.heartbeat(session, fence, 60).cancel_requested
    assert lifecycle.finish_cancel(session, fence).state == "cancelled"


def test_success_just_before_the_cancel_was_seen_stays_success(session: Session) -> None:
    job, fence = make_running(session)
    lifecycle.request_cancel(session, job)
    assert lifecycle.succeed(session, fence, {}).state == "succeeded"


def test_a_released_job_is_queued_again_and_the_attempt_does_not_count(session: Session) -> None:
    job, fence = make_running(session)
    lifecycle.report_progress(session, fence, {"fraction": 0.5})
    lifecycle.release(session, fence)
    session.refresh(job)
    assert (job.state, job.max_attempts - job.attempt, job.announced_at) == ("queued", 3, None)
    assert not job.phase and not job.progress
    with pytest.raises(LeaseLost):
        lifecycle.heartbeat(session, fence, 60)


def test_a_released_job_that_was_being_cancelled_is_cancelled(session: Session) -> None:
    job, fence = make_running(session)
    lifecycle.request_cancel(session, job)
    assert lifecycle.release(session, fence).state == "cancelled"


def test_a_job_that_comes_back_is_announced_at_once(session: Session) -> None:
    job = make_job(session)
    assert lifecycle.announce_due(session, 60) == [(job.id, "cpu", True)]
    claimed = lifecycle.claim(session, job.id, "w", 60)
    assert claimed is not None
    lifecycle.release(session, lifecycle.fence_of(claimed))
    assert lifecycle.announce_due(session, 60) == [(job.id, "cpu", True)]


def test_a_lost_job_comes_back_and_its_old_worker_is_shut_out(session: Session) -> None:
    job, fence = make_running(session)
    assert lifecycle.recover_lost(session) == []
    let_lease_run_out(session, job.id)
    assert lifecycle.recover_lost(session) == [job.id]
    session.refresh(job)
    assert (job.state, job.phase, job.announced_at) == ("queued", None, None)
    with pytest.raises(LeaseLost):
        lifecycle.succeed(session, fence, {})
    again = lifecycle.claim(session, job.id, fence.owner, 60)
    assert again is not None and again.attempt == 2
    with pytest.raises(LeaseLost):
        lifecycle.succeed(session, fence, {})


def test_a_job_lost_too_often_fails_and_names_memory_as_the_likely_cause(session: Session) -> None:
    job, _ = make_running(session)
    for attempt in (1, 2, 3):
        let_lease_run_out(session, job.id)
        lifecycle.recover_lost(session)
        if attempt < 3:
            assert lifecycle.claim(session, job.id, "w", 60) is not None
    session.refresh(job)
    assert (job.state, job.error_code) == ("failed", "worker_lost")
    assert "memory" in (job.error_detail or "") and "phase resolving" in (job.error_detail or "")


def test_a_lost_job_that_was_being_cancelled_is_cancelled(session: Session) -> None:
    job, _ = make_running(session)
    lifecycle.request_cancel(session, job)
    let_lease_run_out(session, job.id)
    lifecycle.recover_lost(session)
    session.refresh(job)
    assert job.state == "cancelled"


def test_two_dispatchers_do_not_recover_one_job_twice(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        job, _ = make_running(session)
        let_lease_run_out(session, job.id)
    with sessions() as one, sessions() as two:
        assert lifecycle.recover_lost(one) == [job.id]
        assert lifecycle.recover_lost(two) == []
        one.commit()
        assert lifecycle.recover_lost(two) == []


def test_a_queued_job_expires_at_its_time(session: Session) -> None:
    job, other = make_job(session, expires_in=3600), make_job(session)
    assert lifecycle.expire(session) == []
    session.execute(text("UPDATE job SET expires_at = now() WHERE id = :id"), {"id": job.id})
    assert lifecycle.expire(session) == [job.id]
    session.refresh(job)
    assert (job.state, other.state) == ("expired", "queued")


def test_a_job_that_was_started_in_time_goes_on_after_it(session: Session) -> None:
    job, fence = make_running(session, expires_in=3600)
    session.execute(text("UPDATE job SET expires_at = now() WHERE id = :id"), {"id": job.id})
    lifecycle.release(session, fence)
    assert lifecycle.expire(session) == []
    assert lifecycle.announce_due(session, 60) == [(job.id, "cpu", True)]
    assert lifecycle.claim(session, job.id, "w", 60) is not None


def test_a_ready_job_is_announced_once_until_it_has_been_quiet_too_long(session: Session) -> None:
    low, high = make_job(session), make_job(session, priority=5)
    assert lifecycle.announce_due(session, 60) == [(high.id, "cpu", True), (low.id, "cpu", True)]
    assert lifecycle.announce_due(session, 60) == []
    assert len(lifecycle.announce_due(session, 0)) == 2
    lifecycle.claim(session, low.id, "w", 60)
    assert lifecycle.announce_due(session, 0) == [(high.id, "cpu", False)]


def test_only_an_ended_job_can_be_deleted(session: Session) -> None:
    job, fence = make_running(session)
    recording.record_artifact(session, fence, "repo", "hub://org/out")
    with pytest.raises(IllegalState, match="cancel it"):
        lifecycle.delete(session, job)
    lifecycle.succeed(session, fence, {})
    lifecycle.delete(session, job)
    assert jobs.get(session, job.id) is None
    assert session.scalar(text("SELECT count(*) FROM job_event")) == 0


def test_a_job_whose_result_another_one_reads_is_deleted_after_that(session: Session) -> None:
    made, fence = make_running(session)
    lifecycle.succeed(session, fence, {})
    reader, reading = make_running(session)
    facts = {"role": "base", "kind": "folder", "repo": f"{made.id}:member"}
    recording.record_inputs(session, reading, [facts])
    with pytest.raises(IllegalState, match=f"what {reader.id} reads"):
        lifecycle.delete(session, made)
    lifecycle.succeed(session, reading, {})
    lifecycle.delete(session, made)
    assert jobs.get(session, made.id) is None


def test_a_repeated_artifact_or_evaluation_replaces_the_earlier_one(session: Session) -> None:
    job, fence = make_running(session)
    recording.record_artifact(session, fence, "repo", "hub://org/out", commit_sha="a")
    recording.record_artifact(session, fence, "repo", "hub://org/out", commit_sha="b", size=7)
    for value in (2.0, 1.5):
        scores = [
            {"subject": subject, "metric": "perplexity", "value": value, "stderr": 0.1, "n": 10}
            for subject in ("math", "result:math", "result", "base")
        ]
        recording.record_evaluation(
            session, fence, {"name": "wiki", "kind": "perplexity", "scores": scores, "passed": True}
        )
    (artifact,) = artifacts.of_job(session, job.id)
    assert (artifact.commit_sha, artifact.size) == ("b", 7)
    ((evaluation, found),) = evaluations.of_job(session, job.id)
    assert [each.subject for each in found] == ["result", "result:math", "base", "math"]
    assert {each.value for each in found} == {1.5}
    assert evaluation.passed


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_the_database_itself_refuses_every_illegal_move(
    session: Session, before: State, after: State
) -> None:
    job = make_job(session)
    owner = {State.RUNNING: "w", State.CANCELLING: "w"}
    way = {State.QUEUED: (), State.CANCELLING: (State.RUNNING, before)}.get(
        before, (State.RUNNING, before) if before in ALLOWED[State.RUNNING] else (before,)
    )
    if before is State.CANCELLED:
        way = (before,)
    move = text("UPDATE job SET state = :state, lease_owner = :owner WHERE id = :id")
    for state in way:
        session.execute(move, {"state": state, "owner": owner.get(state), "id": job.id})
    wanted = {"state": after, "owner": owner.get(after), "id": job.id}
    if before == after or after in ALLOWED[before]:
        session.execute(move, wanted)
    else:
        with pytest.raises(IntegrityError) as refused:
            session.execute(move, wanted)
        assert isinstance(refused.value.orig, psycopg.Error)
        assert refused.value.orig.sqlstate == "23514"


def test_an_active_state_without_an_owner_is_refused(session: Session) -> None:
    job = make_job(session)
    with pytest.raises(IntegrityError, match="ck_job_lease"):
        session.execute(text("UPDATE job SET state = 'running' WHERE id = :id"), {"id": job.id})
