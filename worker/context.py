"""One running job as its worker sees it: a fenced door to the database, a heartbeat and the stop flag."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import structlog

from db.session import storable
from jobs import lifecycle
from jobs.errors import LeaseLost
from jobs.lifecycle import Fence
from jobs.states import PHASES
from jobs.tally import Fact
from worker.board import Board, Note
from worker.errors import Interrupted, Stop

log = structlog.get_logger("worker.context")

TICK_SECONDS = 0.25
CANCEL_POLL_SECONDS = 3.0
PROGRESS_SECONDS = 1.0

Transaction = Callable[[], AbstractContextManager[Any]]
"""Opens a session which commits when left without an error."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a worker shows that it is alive, in seconds."""

    lease: float
    heartbeat: float
    progress: float = PROGRESS_SECONDS
    tick: float = TICK_SECONDS

    @property
    def beat(self) -> float:
        """Seconds between two looks at the row: each renews the lease and sees a request to cancel."""
        return min(self.heartbeat, CANCEL_POLL_SECONDS)


@dataclass
class JobContext:
    """Used as a context manager around the work of one claimed job.

    A thread renews the lease and watches for a cancel request, the job's time limit, a stopping worker and a
    lost lease; the work asks ``should_stop`` between pieces. Every write goes through ``write`` (fenced).
    """

    transaction: Transaction
    fence: Fence
    rhythm: Rhythm
    timeout_seconds: float
    board: Board | None = None
    reason: Stop | None = field(default=None, init=False)
    _over: bool = field(default=False, init=False)
    _done: threading.Event = field(default_factory=threading.Event, init=False)
    _told: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _stop_at: float | None = field(default=None, init=False)
    _renewed_at: float = field(default_factory=time.monotonic, init=False)
    _progressed_at: float = field(default=0.0, init=False)
    _phase: str = field(default=PHASES[0], init=False)
    _entered_at: float = field(default_factory=time.monotonic, init=False)
    _started_at: float = field(default_factory=time.monotonic, init=False)

    def __enter__(self) -> "JobContext":
        self._post()
        self._thread = threading.Thread(
            target=self._watch, name=f"heartbeat {self.fence.job_id}", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._leave()
        if self._thread is not None:
            self._thread.join()
        if self.board is not None:
            self.board.clear(os.getpid())

    def over(self) -> None:
        """The job's end is recorded: what is left to do, such as removing its files, needs no lease and is
        not told to stop, but shows that this process is alive. A beat may have met that end a moment ago, and
        have taken the lease for lost.
        """
        self._over = True
        if self.reason is Stop.LOST:
            self.reason = self._stop_at = None

    def should_stop(self) -> bool:
        """Whether the work should end now; cheap enough to ask between blocks."""
        return self.reason is not None

    def checkpoint(self) -> None:
        """Raises ``Interrupted`` if the work should end now."""
        if self.reason is not None:
            raise Interrupted(self.reason)

    def pause(self, seconds: float) -> None:
        """Waits; raises ``Interrupted`` as soon as the work should end."""
        if self._told.wait(seconds):
            self.checkpoint()

    def write(self, change: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls ``change(session, fence, ...)`` in a transaction of its own.

        Raises ``Interrupted`` with reason ``lost`` if another worker owns the job by now.
        """
        try:
            with self.transaction() as session:
                return change(session, self.fence, *storable(arguments), **storable(options))
        except LeaseLost:
            self._stop(Stop.LOST)
            raise Interrupted(Stop.LOST) from None

    @property
    def phase(self) -> str:
        """The phase the job is in."""
        return self._phase

    def tell(self, name: str, *labels: str, value: float = 1.0) -> None:
        """Leaves a fact for the worker's metrics."""
        if self.board is not None:
            self.board.tell(Fact(name, labels, value))

    def enter(self, phase: str) -> None:
        """Begins a phase, unless the job was told to stop."""
        self.checkpoint()
        self._leave()
        self._phase = phase
        self._progressed_at = 0.0
        self._entered_at = time.monotonic()
        self.write(lifecycle.enter_phase, phase)
        log.info("phase_entered", phase=phase)

    def enter_confirmed(self, phase: str) -> None:
        """Is in a phase, once the row itself has said that the job goes on: a request to cancel it is younger
        than the last heartbeat perhaps, and a process that was still for long has not had one.
        """
        self._beat()
        self.checkpoint()
        if self._phase != phase:
            self.enter(phase)

    def _leave(self) -> None:
        self.tell("merge_phase_seconds", self._phase, value=time.monotonic() - self._entered_at)

    def progress(self, **numbers: float | int | None) -> None:
        """Records progress at most once a second; a database that is away for a moment does no harm."""
        now = time.monotonic()
        if now - self._progressed_at < self.rhythm.progress:
            return
        self._progressed_at = now
        known = {name: value for name, value in numbers.items() if value is not None}
        try:
            self.write(lifecycle.report_progress, known)
        except Interrupted:
            raise
        except Exception as error:
            log.warning("progress_not_recorded", error=str(error))

    def advance(self, done: int, total: int, *, unit: str = "bytes", **counts: int) -> None:
        """Records how much of the phase is done, and the share and seconds left that follow.

        ``unit`` names what is counted: ``bytes``, or ``rows`` of evaluation sets.
        """
        fraction = min(1.0, done / total) if total > 0 else 1.0
        passed = time.monotonic() - self._entered_at
        left = round(passed * (1 - fraction) / fraction, 1) if fraction > 0 else None
        amounts = {f"{unit}_done": done, f"{unit}_total": total}
        self.progress(fraction=round(fraction, 4), eta_seconds=left, **amounts, **counts)

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started_at

    def _watch(self) -> None:
        next_beat = time.monotonic() + self.rhythm.beat
        while not self._done.wait(self.rhythm.tick):
            now = time.monotonic()
            if not self._over:
                self._look()
            if now >= next_beat:
                next_beat = now + self.rhythm.beat
                if self._over:
                    self._post()
                else:
                    self._beat()

    def _look(self) -> None:
        if self.seconds > self.timeout_seconds:
            self._stop(Stop.TIMEOUT)
        if self.board is not None and self.board.is_stopping():
            self._stop(Stop.SHUTDOWN)

    def _beat(self) -> None:
        try:
            with self.transaction() as session:
                beat = lifecycle.heartbeat(session, self.fence, self.rhythm.lease)
        except LeaseLost:
            self._stop(Stop.LOST)
            return
        except Exception as error:
            # The database may be away for a moment; the lease says how long the job may go on without it.
            log.warning("heartbeat_failed", error=str(error))
            if time.monotonic() - self._renewed_at > self.rhythm.lease:
                self._stop(Stop.LOST)
            return
        self._renewed_at = time.monotonic()
        if beat.cancel_requested:
            self._stop(Stop.CANCEL)
        self._post()

    def _stop(self, reason: Stop) -> None:
        if self.reason is None and not self._over:
            self.reason = reason
            self._stop_at = time.monotonic()
            self._told.set()
            log.info("job_told_to_stop", reason=reason.value)
            self._post()

    def _post(self) -> None:
        if self.board is not None and not self._done.is_set():
            fence = self.fence
            note = Note(
                os.getpid(),
                fence.job_id,
                fence.attempt,
                fence.owner,
                alive_at=time.monotonic(),
                stop_at=None if self._over else self._stop_at,
                reason=self.reason.value if self.reason else None,
            )
            try:
                self.board.write(note)
            except OSError as error:
                # The disk may be full for a while: the lease is what counts. An old note would have this
                # process killed as silent, so it comes down until there is room for a new one.
                log.warning("note_not_written", error=str(error))
                self.board.clear(os.getpid())
