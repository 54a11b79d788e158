"""Pages, counts and places in the queue."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from db import jobs
from db.session import sqlalchemy_url
from jobs import lifecycle
from tests.factories import make_caller, make_job, make_running


def test_pages_follow_each_other_without_gap_or_repeat(session: Session) -> None:
    caller = make_caller(session)
    ids = [make_job(session, caller).id for _ in range(7)]
    seen: list[str] = []
    after = None
    while rows := jobs.page(session, caller.tenant_id, limit=3, after=after):
        seen += [job.id for job in rows]
        after = (rows[-1].created_at, rows[-1].id)
        make_job(session, caller)
    assert seen == ids[::-1]


def test_a_page_shows_what_the_filters_ask_for(session: Session) -> None:
    caller, other = make_caller(session, "a"), make_caller(session, "b")
    red = make_job(session, caller, metadata={"colour": "red", "n": "1"})
    make_job(session, caller, metadata={"colour": "blue"})
    running, _ = make_running(session, caller=caller)
    make_job(session, other, metadata={"colour": "red"})

    def ids(**filters: object) -> list[str]:
        return [job.id for job in jobs.page(session, caller.tenant_id, limit=9, **filters)]  # type: ignore[arg-type]

    assert ids(metadata={"colour": "red"}) == [red.id]
    assert ids(state="running") == [running.id]
    assert len(ids(state=["running", "queued"])) == len(ids(method="linear")) == len(ids(kind="merge")) == 3
    assert ids(method="ties") == []
    assert red.id not in ids(created_after=red.created_at) and len(ids(created_after=red.created_at)) == 2


def test_another_tenant_finds_nothing(session: Session) -> None:
    job, stranger = make_job(session), make_caller(session, "stranger")
    assert jobs.of_tenant(session, stranger.tenant_id, job.id) is None
    assert jobs.of_tenant(session, job.tenant_id, job.id) is job


def test_place_in_the_queue_counts_priority_before_age(session: Session) -> None:
    first, second = make_job(session), make_job(session)
    urgent = make_job(session, priority=1)
    assert [jobs.queue_position(session, job) for job in (urgent, first, second)] == [1, 2, 3]
    lifecycle.request_cancel(session, urgent)
    assert jobs.queue_position(session, urgent) is None
    assert jobs.queue_position(session, second) == 2


def test_a_job_is_unattended_while_no_worker_has_one_of_its_queue(session: Session) -> None:
    job = make_job(session)
    alone = jobs.unattended_seconds(session, job)
    assert alone is not None and alone >= 0
    running, _ = make_running(session)
    assert jobs.unattended_seconds(session, job) is jobs.unattended_seconds(session, running) is None


def test_counts_by_queue_and_state(session: Session) -> None:
    caller = make_caller(session)
    make_job(session, caller)
    make_running(session, caller=caller)
    assert jobs.count_states(session) == {("cpu", "queued"): 1, ("cpu", "running"): 1}
    assert jobs.count_states(session, "ten_nobody") == {}
    assert jobs.oldest_queued_seconds(session)["cpu"] >= 0


def test_heartbeats_and_progress_leave_the_indexes_alone(session: Session) -> None:
    job, fence = make_running(session)
    session.commit()
    hot = text("SELECT pg_stat_get_xact_tuples_hot_updated('job'::regclass)")
    before = session.scalar(hot)
    jobs.beat(session, job.id, fence.attempt, fence.owner, 60.0)
    jobs.write_progress(session, job.id, fence.attempt, fence.owner, {"fraction": 0.5}, 0.0)
    assert session.scalar(hot) == before + 2


def test_short_urls_get_the_driver() -> None:
    assert (
        sqlalchemy_url("postgres://a/b") == sqlalchemy_url("postgresql://a/b") == "postgresql+psycopg://a/b"
    )


def test_whichever_job_was_announced_the_one_whose_turn_it_is_is_started(session: Session) -> None:
    caller = make_caller(session)
    first, second, urgent, other = (make_job(session, caller, priority=each) for each in (0, 0, 50, 100))
    other.queue = "gpu"
    session.flush()
    started = [lifecycle.claim_next(session, each.id, "w", 60) for each in (second, second, urgent, first)]
    assert [each and each.id for each in started] == [urgent.id, first.id, second.id, None]
