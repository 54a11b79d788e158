"""A thread in the worker's parent process: reports health, kills stuck children, settles what they leave."""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from celery.signals import heartbeat_sent, worker_ready, worker_shutting_down

from db import jobs as rows
from db import removals
from db.session import Session, make_engine, make_sessions
from jobs import lifecycle, tally
from jobs.errors import LeaseLost
from jobs.lifecycle import Fence
from jobs.tally import Hear
from settings import Settings
from worker import artifacts, scratch
from worker.app import database_of
from worker.board import Board, Note, health_path
from worker.context import Transaction
from worker.endings import settle_stop
from worker.errors import OutOfMemory, Stop

log = structlog.get_logger("worker.supervisor")

LOOK_SECONDS = 0.5
GRACE_SECONDS = 30.0
CLEAN_SECONDS = 600.0
CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")


@dataclass
class Supervisor:
    """Watches the board. ``grace_seconds`` is how long a child may take to stop after it was told to."""

    board: Board
    transaction: Transaction
    scratch: Path
    data_dir: Path
    lease_seconds: float
    keep_seconds: float
    grace_seconds: float = GRACE_SECONDS
    kill: Callable[[int, int], None] = os.kill
    count_kills: Callable[[], int] = lambda: count_out_of_memory_kills(CGROUP_EVENTS)
    hear: Hear = lambda _fact: None
    unfit: bool = field(default=False, init=False)
    """Whether this worker was ended since its device cannot be used."""
    _done: threading.Event = field(default_factory=threading.Event, init=False)
    _kills: int = field(default=0, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _cleaned_at: float = field(default=float("-inf"), init=False)
    _looked_at: float = field(default_factory=time.monotonic, init=False)
    _resumed_at: float = field(default=float("-inf"), init=False)

    @classmethod
    def start(cls, settings: Settings, board: Board, hear: Hear = lambda _fact: None) -> "Supervisor":
        """Starts the thread and connects it to the signals of the Celery worker in this process."""
        sessions = make_sessions(make_engine(database_of(settings), pool_size=1))
        tally.listen(sessions, hear)
        supervisor = cls(
            board,
            sessions.begin,
            settings.scratch,
            settings.data_dir,
            settings.lease_seconds,
            settings.keep_unfinished_seconds,
            settings.stop_grace_seconds,
            hear=hear,
        )
        worker_shutting_down.connect(supervisor._on_shutdown, weak=False)
        heartbeat_sent.connect(supervisor._on_heartbeat, weak=False)
        worker_ready.connect(supervisor._on_ready, weak=False)
        supervisor._thread = threading.Thread(target=supervisor._run, name="supervisor", daemon=True)
        supervisor._thread.start()
        return supervisor

    def stop(self) -> None:
        """Ends the thread after a last look, and takes the board down."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        for _ in range(2):  # the second counts what the first put aside
            self.look()
        self.board.remove()

    def look(self) -> None:
        """One round: settles the jobs of dead children, kills those that should have ended."""
        now = time.monotonic()
        if now - self._looked_at > self.lease_seconds / 2:
            self._resumed_at = now  # the whole worker was still, as in a paused container
        self._looked_at = now
        for note in self.board.notes():
            if not is_alive(note.pid):
                self._settle(note)
                self.board.clear(note.pid)
                self._forget_candidates()
            elif self._is_overdue(note, now):
                log.warning("child_killed", job_id=note.job_id, pid=note.pid, reason=note.reason or "silent")
                self.kill(note.pid, signal.SIGKILL)
        for fact in self.board.told():
            self.hear(fact)
        if self.board.is_unfit() and not self.unfit:
            self.unfit = True
            log.error("worker_unfit", pid=os.getpid())
            self.kill(os.getpid(), signal.SIGTERM)

    def _is_overdue(self, note: Note, now: float) -> bool:
        if note.stop_at is not None and now - max(note.stop_at, self._resumed_at) > self.grace_seconds:
            return True
        return now - max(note.alive_at, self._resumed_at) > self.lease_seconds + self.grace_seconds

    def _settle(self, note: Note) -> None:
        fence = Fence(note.job_id, note.attempt, note.owner)
        kills = self.count_kills()
        starved = kills > self._kills
        self._kills = kills
        log.warning("child_died", job_id=note.job_id, pid=note.pid, out_of_memory=starved)
        try:
            with self.transaction() as session:
                _settle(session, fence, note.reason, starved=starved)
        except LeaseLost:
            log.info("child_had_lost_its_lease", job_id=note.job_id)
        except Exception as error:
            # The dispatcher finds the job when its lease runs out.
            log.warning("settling_failed", job_id=note.job_id, error=str(error))

    def _run(self) -> None:
        self._kills = self.count_kills()
        while not self._done.wait(LOOK_SECONDS):
            try:
                self.look()
                self._clean()
            except Exception as error:
                # Without this thread nobody kills what is stuck: the next round looks again.
                log.warning("look_failed", error=str(error), kind=type(error).__name__)

    def _clean(self) -> None:
        if time.monotonic() - self._cleaned_at > CLEAN_SECONDS:
            self._cleaned_at = time.monotonic()
            self.board.keep()
            self._forget_candidates()
            for root_id in scratch.clean(self.scratch, self.keep_seconds):
                log.info("work_folder_removed", root_id=root_id)
            for root_id in scratch.mark_finished(self.scratch, self._ended):
                log.info("work_folder_left_behind", root_id=root_id)
            for job_id in artifacts.forget(self.data_dir, self._removed):
                log.info("artifact_removed", job_id=job_id)

    def _ended(self, root_ids: Collection[str]) -> Collection[str]:
        with self.transaction() as session:
            return rows.ended_chains(session, root_ids) | removals.among(session, root_ids)

    def _removed(self, job_ids: Collection[str]) -> Collection[str]:
        with self.transaction() as session:
            return removals.among(session, job_ids)

    def _forget_candidates(self) -> None:
        for root_id in scratch.forget_candidates(self.scratch):
            log.info("candidate_removed", root_id=root_id)

    def _on_shutdown(self, **_: Any) -> None:
        self.board.ask_to_stop()

    def _on_ready(self, **_: Any) -> None:
        # Celery's own SIGQUIT first waits for the tasks; like SIGTERM it is to hand them back at once.
        signal.signal(signal.SIGQUIT, signal.getsignal(signal.SIGTERM))

    def _on_heartbeat(self, **_: Any) -> None:
        health_path(self.scratch).touch()


def _settle(session: Session, fence: Fence, reason: str | None, *, starved: bool) -> None:
    if reason is not None:
        settle_stop(session, fence, Stop(reason))
    elif starved:
        detail = (
            "the system killed the job's process because memory ran out; give the worker more or the job less"
        )
        lifecycle.fail(session, fence, OutOfMemory.code, detail, retryable=True)
    else:
        lifecycle.fail(
            session, fence, lifecycle.WORKER_LOST, "the process that ran the job died", retryable=True
        )


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def count_out_of_memory_kills(events: Path) -> int:
    """How many processes of this control group the kernel has killed for memory; 0 where it does not say."""
    try:
        lines = events.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(count) for name, _, count in (line.partition(" ") for line in lines) if name == "oom_kill")
