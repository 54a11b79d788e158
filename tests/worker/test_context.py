"""A running job's heartbeat, stop flag and fence."""

import errno
import json
import os
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from db import jobs as rows
from jobs import lifecycle, recording
from jobs.lifecycle import Fence
from jobs.tally import Fact
from tests.waiting import until
from worker.board import Board, Note
from worker.context import JobContext, Rhythm
from worker.errors import Interrupted, Stop

QUICK = Rhythm(lease=5.0, heartbeat=0.05, progress=0.0, tick=0.02)


def context_of(sessions: sessionmaker[Session], fence: Fence, **options: Any) -> JobContext:
    return JobContext(
        sessions.begin, fence, options.pop("rhythm", QUICK), options.pop("timeout", 60.0), **options
    )


def beat_of(sessions: sessionmaker[Session], fence: Fence) -> Any:
    with sessions() as session:
        job = rows.get(session, fence.job_id)
        assert job is not None
        return job.heartbeat_at


def test_the_lease_is_renewed_while_the_work_goes_on(sessions: sessionmaker[Session], running: Fence) -> None:
    beat = partial(beat_of, sessions, running)
    before = beat()
    with context_of(sessions, running):
        until(lambda: bool(beat() > before))
    after = beat()
    time.sleep(0.15)
    assert beat() == after


def test_a_cancel_request_sets_the_flag(sessions: sessionmaker[Session], running: Fence) -> None:
    with context_of(sessions, running) as context:
        assert not context.should_stop()
        context.checkpoint()
        with sessions.begin() as session:
            job = rows.get(session, running.job_id)
            assert job is not None
            lifecycle.request_cancel(session, job)
        until(context.should_stop)
        assert context.reason is Stop.CANCEL
        with pytest.raises(Interrupted):
            context.checkpoint()
        with pytest.raises(Interrupted):
            context.enter("merging")


def test_a_job_that_has_ended_is_alive_while_its_files_are_removed_and_not_told_to_stop(
    sessions: sessionmaker[Session], running: Fence, tmp_path: Path
) -> None:
    board = Board.create(tmp_path)
    with context_of(sessions, running, board=board, timeout=2.0) as context:
        with sessions.begin() as session:
            lifecycle.succeed(session, running, {})
        until(context.should_stop)  # a beat that has met the end
        context.over()
        before = time.monotonic()
        until(lambda: board.notes()[0].alive_at > before + 2.1)
        assert context.reason is None and board.notes()[0].stop_at is None


def test_a_job_past_its_time_is_told_to_stop(sessions: sessionmaker[Session], running: Fence) -> None:
    with context_of(sessions, running, timeout=0.05) as context:
        until(context.should_stop)
        assert context.reason is Stop.TIMEOUT


def test_a_stopping_worker_tells_its_jobs(
    sessions: sessionmaker[Session], running: Fence, tmp_path: Path
) -> None:
    board = Board.create(tmp_path)
    with context_of(sessions, running, board=board) as context:
        assert board.notes()[0].job_id == running.job_id
        board.ask_to_stop()
        until(context.should_stop)
        assert context.reason is Stop.SHUTDOWN
        until(lambda: board.notes()[0].reason == "shutdown")
    assert board.notes() == []


class FullBoard(Board):
    """A board on a disk that takes nothing more."""

    def write(self, note: Note) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_does_not_end_the_heartbeat(
    sessions: sessionmaker[Session], running: Fence, tmp_path: Path
) -> None:
    beat = partial(beat_of, sessions, running)
    with context_of(sessions, running, board=FullBoard(Board.create(tmp_path).folder)):
        for _ in range(3):
            before = beat()
            until(lambda before=before: bool(beat() > before))


def test_facts_that_the_disk_cannot_hold_are_left_out(tmp_path: Path) -> None:
    board = Board.create(tmp_path)
    (board.folder / f"{os.getpid()}.facts").symlink_to("/dev/full")
    board.tell(Fact("merge_phase_seconds", ("merging",), 1.0))


def test_nothing_is_written_once_another_worker_has_the_job(
    sessions: sessionmaker[Session], running: Fence
) -> None:
    with sessions.begin() as session:
        lifecycle.release(session, running)
        assert lifecycle.claim(session, running.job_id, "worker-2", 60) is not None
    slow = Rhythm(lease=5.0, heartbeat=60.0, progress=0.0, tick=0.02)
    with context_of(sessions, running, rhythm=slow) as context:
        with pytest.raises(Interrupted) as caught:
            context.enter("merging")
        assert caught.value.reason is Stop.LOST and context.should_stop()
        with pytest.raises(Interrupted):
            context.write(lifecycle.succeed, {})
    with sessions() as session:
        job = rows.get(session, running.job_id)
        assert job is not None
        assert (job.state, job.phase, job.lease_owner) == ("running", "resolving", "worker-2")


def test_a_heartbeat_notices_the_lost_lease_by_itself(
    sessions: sessionmaker[Session], running: Fence
) -> None:
    with sessions.begin() as session:
        lifecycle.release(session, running)
    with context_of(sessions, running) as context:
        until(context.should_stop)
        assert context.reason is Stop.LOST


def test_work_goes_on_without_a_database_for_as_long_as_the_lease_and_no_longer(running: Fence) -> None:
    def away() -> AbstractContextManager[Any]:
        raise ConnectionError("the database is away")

    rhythm = Rhythm(lease=0.4, heartbeat=0.05, progress=0.0, tick=0.02)
    with JobContext(away, running, rhythm, 60.0) as context:
        time.sleep(0.2)
        assert not context.should_stop()
        context.progress(fraction=0.5)
        until(context.should_stop)
        assert context.reason is Stop.LOST


def test_progress_tells_share_and_seconds_left(sessions: sessionmaker[Session], running: Fence) -> None:
    with context_of(sessions, running) as context:
        context.enter("merging")
        time.sleep(0.1)
        context.advance(50, 200, tensors_done=1, tensors_total=4)
    with sessions() as session:
        job = rows.get(session, running.job_id)
        assert job is not None
    assert job.progress["fraction"] == 0.25 and job.progress["bytes_total"] == 200
    assert job.progress["tensors_done"] == 1 and 0.2 <= job.progress["eta_seconds"] <= 2


def test_progress_is_recorded_at_most_once_a_period(sessions: sessionmaker[Session], running: Fence) -> None:
    with context_of(sessions, running, rhythm=Rhythm(5.0, 60.0, progress=30.0)) as context:
        context.advance(1, 100)
        context.advance(2, 100)
    with sessions() as session:
        job = rows.get(session, running.job_id)
        assert job is not None and job.progress["bytes_done"] == 1


def test_texts_that_the_database_cannot_hold_are_made_storable(
    sessions: sessionmaker[Session], running: Fence
) -> None:
    broken = "a\0b\ud800c"
    with context_of(sessions, running) as context:
        context.write(
            recording.record_evaluation,
            {"name": "check", "kind": "check", "passed": False, "detail": {"generated": [(broken,)]}},
        )
        context.write(recording.record_warning, "odd", detail=broken)
    with sessions() as session:
        rows_ = session.scalars(text("SELECT detail::text FROM evaluation")).all()
    assert json.loads(rows_[0]) == {"generated": [["a\ufffdb?c"]]}
