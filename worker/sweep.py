"""Jobs nobody announced, jobs whose worker vanished, jobs that waited too long, rows of no more use: found by
the dispatcher.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from db import artifacts, removals, scores, webhooks
from db.clock import reading
from db.session import Session
from jobs import idempotency, lifecycle
from jobs.errors import IllegalState, NotFound
from worker.context import Transaction

log = structlog.get_logger("worker.sweep")

ENOUGH = 200
"""Messages that may lie in a queue when a job is announced once more."""

Ring = Callable[[str, str], None]


@dataclass
class Doorbell:
    """Tells workers which jobs are ready. What the broker did not take is rung again in the next round.

    Nobody is told again of a queue where many messages lie that no worker has taken: they would only become
    more, for as long as no worker listens, and new jobs would wait behind them all. ``lying`` counts them.
    """

    transaction: Transaction
    ring: Ring
    after_seconds: float
    lying: Callable[[str], int] = lambda _queue: 0
    unsent: dict[tuple[str, str], bool] = field(default_factory=dict)

    def announce_due(self) -> int:
        """Announces every ready job not announced within ``after_seconds``; says how many went.

        The rows are marked before the messages go out, so that a quick worker finds a row free to claim; a
        crash in between costs one ``after_seconds``.
        """
        with self.transaction() as session:
            due = lifecycle.announce_due(session, self.after_seconds)
        # While the broker is away the same jobs come again and again; each is rung for once.
        for job_id, queue, first in due:
            self.unsent.setdefault((job_id, queue), first)
        sent = 0
        room: dict[str, int] = {}
        for (job_id, queue), first in list(self.unsent.items()):
            if not first and queue not in room:
                room[queue] = ENOUGH - self.lying(queue)
            if not first:
                room[queue] -= 1
            if first or room[queue] >= 0:
                self.ring(job_id, queue)
                sent += 1
                log.info("job_announced", job_id=job_id, queue=queue)
            del self.unsent[job_id, queue]
        return sent


def recover(transaction: Transaction, counts: bool = True) -> list[str]:
    """Gives back the jobs whose lease has run out: queued again, or failed when all attempts are used, of
    which this one is none unless it ``counts``.
    """
    with transaction() as session:
        found = lifecycle.recover_lost(session, counts)
    for job_id in found:
        log.warning("lease_lost", job_id=job_id)
    return found


def clock() -> float:
    """Seconds that go on while the machine sleeps, where the system counts those."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass
class Recovery:
    """``recover``, but for what is no worker's fault. When leases could not be looked at for long, since the
    database was away or the machine slept, or when the database's clock was set forward, no worker could show
    that it is alive: those that are renew their leases first, and what is lost in the time of a lease after
    that has cost no attempt.
    """

    transaction: Transaction
    lease_seconds: float
    clock: Callable[[], float] = clock
    reading: Callable[[Session], float] = reading
    _heard_at: float = field(init=False)
    _read: float = field(default=float("inf"), init=False)
    _lenient_until: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        self._heard_at = self.clock()

    def look(self) -> list[str]:
        """One round; which jobs were lost."""
        heard_at, read = self._heard_at, self._read
        with self.transaction() as session:
            self._read = self.reading(session)
        self._heard_at = self.clock()
        lenient = self._heard_at <= self._lenient_until
        unseen = max(self._heard_at - heard_at, self._read - read)
        if unseen > self.lease_seconds / 2:
            self._lenient_until = self._heard_at + self.lease_seconds
            log.warning("leases_not_seen", seconds=round(unseen, 1))
            if not lenient:
                return []
        return recover(self.transaction, counts=not lenient)


def expire(transaction: Transaction) -> list[str]:
    """Ends the queued jobs whose ``expires_at`` has passed."""
    with transaction() as session:
        found = lifecycle.expire(session)
    for job_id in found:
        log.info("job_expired", job_id=job_id)
    return found


@dataclass(frozen=True)
class Keeping:
    """For how many seconds what nobody needs any more is kept: known scores and uploads from their last use,
    webhook messages that were delivered or given up from when they were made, jobs from their end. Uploads
    and jobs stay where that is 0.
    """

    scores: float
    deliveries: float
    datasets: float = 0.0
    jobs: float = 0.0


def prune(
    transaction: Transaction, keeping: Keeping, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, int]:
    """Forgets answers of requests with an idempotency key after three days, which jobs were deleted after a
    year, the rest as ``keeping`` says; how many of each. Each is a transaction of its own.
    """
    duties: dict[str, Callable[[Session], int]] = {
        "answers": idempotency.prune,
        "scores": partial(scores.prune, keep_seconds=keeping.scores),
        "deliveries": partial(webhooks.prune, keep_seconds=keeping.deliveries),
        "removals": removals.prune,
    }
    if keeping.datasets:
        duties["datasets"] = partial(artifacts.prune_datasets, keep_seconds=keeping.datasets)
    found = {}
    for what, forget in duties.items():
        with transaction() as session:
            found[what] = forget(session)
    if keeping.jobs:
        found["jobs"] = _delete_jobs(transaction, keeping.jobs, should_stop)
    if any(found.values()):
        log.info("rows_forgotten", **found)
    return found


def _delete_jobs(transaction: Transaction, keep_seconds: float, should_stop: Callable[[], bool]) -> int:
    """One at a time, since a deletion touches what others are at work on, until there are no more; those that
    cannot go yet stay.
    """
    gone, before = 0, -1
    while gone > before:
        before = gone
        with transaction() as session:
            ended = removals.outlived(session, keep_seconds)
        for job in ended:
            if should_stop():
                return gone
            with suppress(IllegalState, NotFound), transaction() as session:
                lifecycle.delete(session, job)
                gone += 1
    return gone
