"""Facts are counted when they are committed, and never when they are not."""

from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.orm import Session, sessionmaker

from jobs import lifecycle, tally
from jobs.metrics import Counts
from jobs.tally import Fact
from tests.factories import let_lease_run_out, make_job, make_running


def test_what_is_rolled_back_did_not_happen(sessions: sessionmaker[Session]) -> None:
    heard: list[Fact] = []
    tally.listen(sessions, heard.append)
    with sessions() as session:
        make_job(session)
        tally.note(session, "lease_lost_total")
        session.rollback()
        tally.note(session, "merge_jobs_total", "linear", "failed")
        session.commit()
    assert heard == [Fact("merge_jobs_total", ("linear", "failed"))]


def test_an_ended_job_is_counted_by_method_and_state_with_its_attempts(
    sessions: sessionmaker[Session],
) -> None:
    counts = Counts(registry := CollectorRegistry())
    tally.listen(sessions, counts.hear)
    with sessions.begin() as session:
        lifecycle.succeed(session, make_running(session)[1], {})
    with sessions.begin() as session:
        lifecycle.request_cancel(session, make_job(session))
    text = generate_latest(registry).decode()
    assert 'merge_jobs_total{method="linear",state="succeeded"} 1.0' in text
    assert 'merge_jobs_total{method="linear",state="cancelled"} 1.0' in text
    assert "job_attempts_count 2.0" in text


def test_a_lost_lease_is_counted(sessions: sessionmaker[Session]) -> None:
    heard: list[Fact] = []
    tally.listen(sessions, heard.append)
    with sessions.begin() as session:
        let_lease_run_out(session, make_running(session)[0].id)
    with sessions.begin() as session:
        lifecycle.recover_lost(session)
    assert Fact("lease_lost_total") in heard


def test_a_fact_without_a_metric_is_no_accident() -> None:
    Counts(CollectorRegistry()).hear(Fact("something_else_total"))
