"""The parent's watch over its children."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import jobs as rows
from db import removals
from db.models.job import Job
from jobs import lifecycle
from jobs.lifecycle import Fence
from jobs.submit import retry
from tests.factories import make_caller, make_rules, make_running
from tests.waiting import until
from worker.artifacts import artifact_folder
from worker.board import Board, Note
from worker.scratch import WorkFolder
from worker.supervisor import Supervisor, count_out_of_memory_kills, is_alive


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def watch(sessions: sessionmaker[Session], folder: Path, **options: Any) -> Supervisor:
    return Supervisor(
        Board.create(folder), sessions.begin, folder, folder, lease_seconds=5.0, keep_seconds=60.0, **options
    )


def note(pid: int, fence: Fence, **fields: Any) -> Note:
    facts = {"alive_at": time.monotonic(), **fields}
    return Note(pid, fence.job_id, fence.attempt, fence.owner, **facts)


def job_of(sessions: sessionmaker[Session], fence: Fence) -> Job:
    with sessions() as session:
        job = rows.get(session, fence.job_id)
        assert job is not None
        return job


def test_a_child_that_does_not_stop_is_killed_after_the_grace(
    sessions: sessionmaker[Session], tmp_path: Path, running: Fence, child: subprocess.Popen[bytes]
) -> None:
    supervisor = watch(sessions, tmp_path, grace_seconds=30.0)
    with sessions.begin() as session:
        job = rows.get(session, running.job_id)
        assert job is not None
        lifecycle.request_cancel(session, job)
    supervisor.board.write(note(child.pid, running, stop_at=time.monotonic() - 29, reason="cancel"))
    supervisor.look()
    assert child.poll() is None
    supervisor.board.write(note(child.pid, running, stop_at=time.monotonic() - 31, reason="cancel"))
    supervisor.look()
    assert child.wait(5) == -signal.SIGKILL
    supervisor.look()
    assert job_of(sessions, running).state == "cancelled"
    assert supervisor.board.notes() == []


def test_a_child_that_is_silent_for_longer_than_its_lease_is_killed(
    sessions: sessionmaker[Session], tmp_path: Path, running: Fence, child: subprocess.Popen[bytes]
) -> None:
    supervisor = watch(sessions, tmp_path, grace_seconds=1.0)
    supervisor.board.write(note(child.pid, running, alive_at=time.monotonic() - 5.5))
    supervisor.look()
    assert child.poll() is None
    supervisor.board.write(note(child.pid, running, alive_at=time.monotonic() - 6.5))
    supervisor.look()
    assert child.wait(5) == -signal.SIGKILL


def test_a_child_is_not_held_silent_for_the_time_in_which_the_worker_was_paused(
    sessions: sessionmaker[Session], tmp_path: Path, running: Fence, child: subprocess.Popen[bytes]
) -> None:
    supervisor = watch(sessions, tmp_path, grace_seconds=1.0)
    supervisor.board.write(note(child.pid, running, alive_at=time.monotonic() - 3600))
    supervisor._looked_at -= 3600
    for _ in range(2):
        supervisor.look()
        assert child.poll() is None
    supervisor._resumed_at -= 6.5
    supervisor.look()
    assert child.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("reason", "state", "code"),
    [(None, "queued", None), ("shutdown", "queued", None), ("timeout", "failed", "timeout")],
)
def test_what_a_dead_child_leaves_is_settled_at_once(
    sessions: sessionmaker[Session],
    tmp_path: Path,
    running: Fence,
    child: subprocess.Popen[bytes],
    reason: str | None,
    state: str,
    code: str | None,
) -> None:
    supervisor = watch(sessions, tmp_path)
    with WorkFolder(tmp_path, running.job_id) as work:
        work.candidate.mkdir()
    child.kill()
    child.wait()
    supervisor.board.write(note(child.pid, running, reason=reason))
    supervisor.look()
    job = job_of(sessions, running)
    assert (job.state, job.error_code) == (state, code)
    assert not work.candidate.exists() and work.path.is_dir()


def test_a_child_that_dies_before_it_hears_of_a_cancel_leaves_a_cancelled_job(
    sessions: sessionmaker[Session], tmp_path: Path, running: Fence, child: subprocess.Popen[bytes]
) -> None:
    supervisor = watch(sessions, tmp_path)
    with sessions.begin() as session:
        job = rows.get(session, running.job_id)
        assert job is not None
        lifecycle.request_cancel(session, job)
    child.kill()
    child.wait()
    supervisor.board.write(note(child.pid, running))
    supervisor.look()
    assert job_of(sessions, running).state == "cancelled"


def test_folders_of_jobs_that_ended_without_their_worker_make_room(
    sessions: sessionmaker[Session], tmp_path: Path, running: Fence
) -> None:
    with sessions.begin() as session:
        lost, deleted, again = [make_running(session)[1] for _ in range(3)]
        for fence in (lost, deleted, again):
            lifecycle.fail(session, fence, "worker_lost", "the process died")
        for fence, change in ((deleted, lifecycle.delete), (again, None)):
            job = rows.get(session, fence.job_id)
            assert job is not None
            if change is not None:
                change(session, job)
            else:
                retry(session, make_caller(session), job, make_rules())
    others = (running.job_id, again.job_id, "job_of_another_database")
    for root_id in (lost.job_id, deleted.job_id, *others):
        with WorkFolder(tmp_path, root_id):
            pass
    watch(sessions, tmp_path)._clean()
    marked = sorted(path.parent.name for path in (tmp_path / "jobs").glob("*/finished"))
    assert marked == sorted([lost.job_id, deleted.job_id])


def test_a_child_killed_for_memory_fails_the_job_as_out_of_memory(
    sessions: sessionmaker[Session], tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    with sessions.begin() as session:
        fences = [make_running(session, rules=make_rules(max_attempts=1))[1] for _ in range(2)]
    supervisor = watch(sessions, tmp_path, count_kills=lambda: 1)
    child.kill()
    child.wait()
    for fence, code in zip(fences, ("out_of_memory", "worker_lost"), strict=True):
        supervisor.board.write(note(child.pid, fence))
        supervisor.look()
        job = job_of(sessions, fence)
        assert (job.state, job.error_code) == ("failed", code)


def test_a_job_that_another_worker_has_by_now_is_left_alone(
    sessions: sessionmaker[Session], tmp_path: Path, running: Fence, child: subprocess.Popen[bytes]
) -> None:
    with sessions.begin() as session:
        lifecycle.release(session, running)
        lifecycle.claim(session, running.job_id, "worker-2", 60)
    child.kill()
    child.wait()
    supervisor = watch(sessions, tmp_path)
    supervisor.board.write(note(child.pid, running))
    supervisor.look()
    assert job_of(sessions, running).lease_owner == "worker-2"


def test_a_worker_whose_device_cannot_be_used_is_ended(
    sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    ended: list[tuple[int, int]] = []
    supervisor = watch(sessions, tmp_path, kill=lambda *given: ended.append(given))
    supervisor.look()
    assert not supervisor.unfit
    supervisor.board.declare_unfit()
    for _ in range(2):
        supervisor.look()
    assert ended == [(os.getpid(), signal.SIGTERM)] and supervisor.unfit


def test_zombies_count_as_dead(child: subprocess.Popen[bytes]) -> None:
    assert is_alive(child.pid) and is_alive(os.getpid())
    child.kill()
    until(lambda: not is_alive(child.pid))
    assert not is_alive(2**22 + 1)


def test_kills_for_memory_are_read_from_the_control_group(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    assert count_out_of_memory_kills(events) == 0
    events.write_text("low 0\nhigh 3\nmax 12\noom 2\noom_kill 2\n")
    assert count_out_of_memory_kills(events) == 2


def test_a_board_that_cannot_be_read_for_once_does_not_end_the_watch(
    sessions: sessionmaker[Session], tmp_path: Path, running: Fence, child: subprocess.Popen[bytes]
) -> None:
    supervisor = watch(sessions, tmp_path, grace_seconds=1.0)
    (supervisor.board.folder / "1.counted").write_text('{"name": "merge_ph')  # the disk was full
    supervisor.board.write(note(child.pid, running, alive_at=time.monotonic() - 60))
    with watching(supervisor):
        assert child.wait(10) == -signal.SIGKILL
        until(lambda: not supervisor.board.notes())


def test_the_board_of_an_idle_worker_is_kept(sessions: sessionmaker[Session], tmp_path: Path) -> None:
    supervisor = watch(sessions, tmp_path)
    long_ago = time.time() - 100_000
    os.utime(supervisor.board.folder, (long_ago, long_ago))
    with watching(supervisor):
        until(lambda: supervisor.board.folder.stat().st_mtime > long_ago + 1)


def test_what_is_kept_of_deleted_jobs_is_removed_and_nothing_else(
    sessions: sessionmaker[Session], tmp_path: Path, running: Fence
) -> None:
    with sessions.begin() as session:
        deleted, cut_off = [make_running(session)[1] for _ in range(2)]
    kept, going = (artifact_folder(tmp_path, each.job_id) for each in (running, deleted))
    parts = [kept.with_name(f".{cut_off.job_id}{end}") for end in (".partial", ".gone")]
    others = [kept, kept.with_name("job_of_another_database"), kept.with_name(f".{running.job_id}.partial")]
    for folder in (*others, going, *parts):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    link = artifact_folder(tmp_path, cut_off.job_id)
    link.symlink_to(tmp_path)
    watch(sessions, tmp_path)._clean()
    assert going.exists()
    with sessions.begin() as session:
        for fence in (deleted, cut_off):
            lifecycle.delete(session, lifecycle.succeed(session, fence, {}))
        still_there = rows.get(session, running.job_id)
        assert still_there is not None
        removals.note(session, still_there)
    with watching(watch(sessions, tmp_path)):
        until(lambda: not any(each.exists() for each in (going, *parts)))
    assert all((each / "model.safetensors").exists() for each in others) and link.is_symlink()
    assert len(list(kept.parent.iterdir())) == len(others) + 1


@contextmanager
def watching(supervisor: Supervisor) -> Iterator[None]:
    """The supervisor's own rounds, as in a worker."""
    thread = threading.Thread(target=supervisor._run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        supervisor._done.set()
        thread.join(10)
