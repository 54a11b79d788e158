"""The trials of a search, which any number of workers score side by side.

The job that searches has every batch wait as rows; it and the jobs that help it take one trial at a time. Who
takes a trial holds it as long as its job's lease lasts, so that nothing of a worker that vanished is lost,
and what a worker says too late is not heard.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from db import trials
from db.models.trial import Trial as Row
from search.drive import Candidate, Trial
from search.trial import Ask, Told
from worker.context import JobContext, Transaction

log = structlog.get_logger("worker.trials")


class Rows:
    """The journal of a search in the database: what was scored, by whomever, over all attempts.

    ``recipe_of`` makes the whole recipe of a point.
    """

    def __init__(
        self,
        transaction: Transaction,
        root_id: str,
        recipe_of: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self._transaction, self._root, self._recipe_of = transaction, root_id, recipe_of
        with transaction() as session:
            rows = trials.of_search(session, root_id)
        self._known = {(row.key, row.share): Told.of(row.told) for row in rows if row.told is not None}
        self._numbers = {(row.key, row.share): row.number for row in rows}
        self._next = max(self._numbers.values(), default=-1) + 1
        self.spent_seconds = max((row.elapsed for row in rows if row.told is not None), default=0.0)
        self._begun = time.monotonic() - self.spent_seconds

    def find(self, key: str, share: float) -> Told | None:
        """What was scored before."""
        return self._known.get((key, share))

    def record(self, trial: Trial, elapsed: float) -> None:
        """Nothing more: the worker that scored it has written it."""

    def ask(self, wanted: Sequence[Candidate]) -> None:
        """Has candidates wait for a worker, in this order."""
        elapsed = time.monotonic() - self._begun
        with self._transaction() as session:
            trials.ask(session, self._root, [self._facts(each, elapsed) for each in wanted])

    def score_one(self, context: JobContext, scored: Callable[[Candidate], Told]) -> bool:
        """Takes the first trial that waits, scores it and keeps the score; says whether there was one."""
        context.checkpoint()
        fence = context.fence
        with self._transaction() as session:
            row = trials.claim(session, self._root, fence.job_id, fence.attempt)
        if row is None:
            return False
        told = scored(self._candidate(row))
        with self._transaction() as session:
            kept = trials.finish(session, row, told.as_dict())
        if not kept:
            log.warning("trial_is_another_s", number=row.number)
        return True

    def standing(self) -> tuple[int, float]:
        """Trials that are not scored yet, and evaluations that were."""
        with self._transaction() as session:
            return trials.standing(session, self._root)

    def told(self, wanted: Sequence[Candidate]) -> list[Told]:
        """What candidates scored, in the order in which they were asked for."""
        first = min(self._numbers[each.key, each.share] for each in wanted)
        with self._transaction() as session:
            rows = trials.of_search(session, self._root, first - 1)
        told = {(row.key, row.share): Told.of(row.told) for row in rows if row.told is not None}
        return [told[each.key, each.share] for each in wanted]

    def close(self) -> None:
        """Forgets the trials that nobody will score any more."""
        with self._transaction() as session:
            trials.forget_open(session, self._root)

    def _candidate(self, row: Row) -> Candidate:
        return Candidate(row.key, self._recipe_of(row.point), Ask(row.point, row.examples), row.share)

    def _facts(self, candidate: Candidate, elapsed: float) -> dict[str, Any]:
        place = candidate.key, candidate.share
        if place not in self._numbers:
            self._numbers[place] = self._next
            self._next += 1
        return {
            "key": candidate.key,
            "share": candidate.share,
            "number": self._numbers[place],
            "point": candidate.ask.point,
            "examples": candidate.ask.examples,
            "elapsed": elapsed,
        }
