"""What becomes of a job that does not succeed, and what is told of it."""

import errno
import os
import signal
import sys
from dataclasses import replace
from typing import Any, cast

import pytest
from celery.exceptions import Reject
from sqlalchemy import text

from hub.errors import RateLimited, Unavailable
from hub.folder_faults import Fault
from jobs import lifecycle, recording, submit
from jobs.errors import OrderOutdated
from merge.errors import Finding, PlanRefused
from settings import Settings
from tests.factories import TEST_SECRET, make_caller, make_rules
from tests.worker.conftest import Floor
from worker import child, run_job
from worker.board import Board
from worker.endings import describe
from worker.scorer import Scorer
from worker.scratch import WorkFolder


def test_a_hub_that_asks_to_be_left_alone_for_minutes_is(floor: Floor) -> None:
    floor.hub.faults.add("info", Fault(status=429, headers={"retry-after": "200"}))
    job = floor.run(floor.order())
    assert (job.state, job.attempt) == ("queued", 1)
    left = text("SELECT extract(epoch FROM not_before - clock_timestamp()) FROM job")
    with floor.sessions() as session:
        assert 150 < float(session.scalar(left) or 0) <= 200


def test_only_a_rate_limit_says_when_to_come_back() -> None:
    limited = describe(RateLimited("later, hf_secretsecret", 90.0))
    assert (limited.wait, limited.retryable, limited.detail) == (90.0, True, "later, [redacted]")
    assert describe(RateLimited("later")).wait == describe(Unavailable("away")).wait == 0.0


def test_no_failure_tells_the_token_also_where_it_looks_like_two_and_in_what_was_found() -> None:
    token = "hf_abcdefgh1234-andtherest"
    said = Finding("error", "request_refused", f"{token} and https://a:b@c", "/x")
    told = describe(PlanRefused((said,)), secret=token)
    assert told.detail == "[redacted] and https://[redacted]@c"
    assert told.findings == [
        {"severity": "error", "code": "request_refused", "message": told.detail, "pointer": "/x"}
    ]


class Written:
    """Keeps what would be written of a job."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def write(self, _change: Any, _code: str, detail: str) -> None:
        self.warnings.append(detail)


def test_a_model_that_cannot_be_scored_tells_nobody_a_password() -> None:
    context, nothing = Written(), cast(Any, None)
    scorer = Scorer(nothing, "tenant", cast(Any, context), (), ())
    scorer.leave_out("a", "404 for url https://ann:pass@hub.example/x")
    assert context.warnings == ["a: 404 for url https://[redacted]@hub.example/x"]
    assert scorer.fails == {"a": "404 for url https://[redacted]@hub.example/x"}


def hang_up(session: Any, *_: Any, **__: Any) -> None:
    """As when the database is restarted."""
    session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def test_an_attempt_that_the_database_broke_off_does_not_count(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = floor.order(attempts=1)
    with monkeypatch.context() as patch:
        patch.setattr(recording, "record_artifact", hang_up)
        job = floor.run(job_id)
    assert (job.state, job.attempt, job.max_attempts) == ("queued", 1, 2)
    assert floor.events(job_id)[-1].data["code"] == "database_away"


def test_a_worker_without_its_gpu_leaves_the_job_to_another(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, broken = floor.order(attempts=1), replace(floor.workshop, device="cuda:0")
    monkeypatch.setattr(child, "workshop", lambda: broken)
    with pytest.raises(Reject) as rejected:
        child.run_job(job_id)
    job = floor.job(job_id)
    assert (job.state, job.attempt, floor.types(job_id)) == ("queued", 0, ["merge.queued"])
    assert rejected.value.requeue and broken.board is not None and broken.board.is_unfit()


def test_a_worker_that_can_write_nothing_leaves_the_job_to_another(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even that it is unfit, which would lie on the same disk."""
    job_id, file, told = floor.order(), floor.folder / "file", list[tuple[int, int]]()
    file.touch()
    settings = Settings(data_dir=floor.folder, scratch_dir=file / "scratch", secret_key=TEST_SECRET)
    workshop = replace(floor.workshop, settings=settings, board=Board(file))
    monkeypatch.setattr(child, "workshop", lambda: workshop)
    monkeypatch.setattr(os, "kill", lambda *sent: told.append(sent))
    with pytest.raises(Reject):
        child.run_job(job_id)
    job = floor.job(job_id)
    assert (job.state, job.attempt, told) == ("queued", 0, [(os.getppid(), signal.SIGTERM)])
    failure = describe(OSError(errno.EROFS, "Read-only file system", "/disk/output"))
    assert (failure.code, failure.retryable) == ("disk_unusable", True)


def test_an_attempt_in_a_folder_that_another_process_holds_does_not_count(floor: Floor) -> None:
    job_id = floor.order(attempts=1)
    with WorkFolder(floor.workshop.settings.scratch, job_id):
        job = floor.run(job_id)
    assert (job.state, job.attempt, job.max_attempts) == ("queued", 1, 2)
    assert floor.events(job_id)[-1].data["code"] == "work_folder_busy"


def test_a_process_that_is_told_to_end_gives_its_job_back(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = floor.order(attempts=1)
    monkeypatch.setitem(run_job.STORIES, "merge", lambda _: sys.exit(15))
    with pytest.raises(SystemExit):
        floor.run(job_id)
    job = floor.job(job_id)
    assert (job.state, job.attempt, job.max_attempts) == ("queued", 1, 2)


def test_an_end_waits_for_the_database(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = iter([hang_up] * 8)
    succeed = lifecycle.succeed
    monkeypatch.setitem(run_job.STORIES, "merge", lambda _: {})
    monkeypatch.setattr(run_job, "ENDING_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(lifecycle, "succeed", lambda *given: next(fails, succeed)(*given))
    assert floor.run(floor.order()).state == "succeeded"


def test_a_result_that_cannot_be_stored_is_told_at_once(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run_job.STORIES, "merge", lambda _: {"score": float("nan")})
    job = floor.run(floor.order(attempts=1))
    assert (job.state, job.error_code) == ("failed", "internal_error")


def test_an_order_that_only_an_earlier_version_took_fails_at_once_with_the_reason(floor: Floor) -> None:
    job_id = floor.order()
    outdated = """UPDATE job SET spec = jsonb_set(spec::jsonb, '{output,revision}', '"a b"')"""
    with floor.sessions.begin() as session:
        session.execute(text(outdated))
    job = floor.run(job_id)
    assert (job.state, job.attempt, job.error_code) == ("failed", 1, "order_outdated")
    assert "/output/revision" in str(job.error_detail)
    with floor.sessions.begin() as session, pytest.raises(OrderOutdated):
        submit.retry(session, make_caller(session), job, make_rules())
