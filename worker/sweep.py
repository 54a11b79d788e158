"""Jobs nobody announced, jobs whose worker vanished, jobs that waited too long, rows of no more use: found by
the dispatcher.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from db import removals, scores, webhooks
from jobs import idempotency, lifecycle
from worker.context import Transaction

log = structlog.get_logger("worker.sweep")

Ring = Callable[[str, str], None]


@dataclass
class Doorbell:
    """Tells workers which jobs are ready. What the broker did not take is rung again in the next round."""

    transaction: Transaction
    ring: Ring
    after_seconds: float
    unsent: list[tuple[str, str]] = field(default_factory=list)

    def announce_due(self) -> int:
        """Announces every ready job not announced within ``after_seconds``; says how many went.

        The rows are marked before the messages go out, so that a quick worker finds a row free to claim; a
        crash in between costs one ``after_seconds``.
        """
        with self.transaction() as session:
            due = lifecycle.announce_due(session, self.after_seconds)
        # While the broker is away the same jobs come again and again; each is rung for once.
        self.unsent = list(dict.fromkeys([*self.unsent, *due]))
        sent = 0
        while self.unsent:
            job_id, queue = self.unsent[0]
            self.ring(job_id, queue)
            self.unsent.pop(0)
            sent += 1
            log.info("job_announced", job_id=job_id, queue=queue)
        return sent


def recover(transaction: Transaction) -> list[str]:
    """Gives back the jobs whose lease has run out: queued again, or failed when all attempts are used."""
    with transaction() as session:
        found = lifecycle.recover_lost(session)
    for job_id in found:
        log.warning("lease_lost", job_id=job_id)
    return found


def expire(transaction: Transaction) -> list[str]:
    """Ends the queued jobs whose ``expires_at`` has passed."""
    with transaction() as session:
        found = lifecycle.expire(session)
    for job_id in found:
        log.info("job_expired", job_id=job_id)
    return found


@dataclass(frozen=True)
class Keeping:
    """For how many seconds what nobody needs any more is kept: known scores from their last use, webhook
    messages that were delivered or given up from when they were made.
    """

    scores: float
    deliveries: float


def prune(transaction: Transaction, keeping: Keeping) -> dict[str, int]:
    """Forgets answers of requests with an idempotency key after three days, which jobs were deleted after a
    year, scores and webhook messages as ``keeping`` says; how many of each. Each is a transaction of its own.
    """
    duties: dict[str, Callable[[Any], int]] = {
        "answers": idempotency.prune,
        "scores": partial(scores.prune, keep_seconds=keeping.scores),
        "deliveries": partial(webhooks.prune, keep_seconds=keeping.deliveries),
        "removals": removals.prune,
    }
    found = {}
    for what, forget in duties.items():
        with transaction() as session:
            found[what] = forget(session)
    if any(found.values()):
        log.info("rows_forgotten", **found)
    return found
