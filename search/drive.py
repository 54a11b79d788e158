"""Drives a search: asks a method what to try, has it scored, remembers, and knows when to stop.

What was scored is kept by a digest of the whole recipe. A run that was killed is driven again from the start:
the method asks the same questions, the journal answers, and the first new question is where the last run
ended. Time is only looked at where something new is asked for: what a run had scored, or had begun to score,
before its time was up is answered again.

In the end the recipe as it was sent is scored too, if no candidate was the same, so that a search can say
what it has gained and never hands back less. That is no part of what the method sees, nor of the budget of
evaluations.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from search.errors import SearchFailed
from search.methods import load
from search.order import Halving, SearchOrder
from search.space import Point
from search.trial import Ask, Found, Search, Task, Told, sound

EDGE = 1e-9
"""How far below those that went on, as a share of their scores, a candidate is told that was given up."""
HOPELESS = 8
"""So many candidates that failed, and none that did not, end a search."""


@dataclass(frozen=True)
class Candidate:
    """One recipe to merge and score on ``share`` of the examples (the first ones of each set)."""

    key: str
    recipe: Mapping[str, Any]
    ask: Ask
    share: float = 1.0


@dataclass(frozen=True)
class Trial:
    """A candidate with what came out, in the order in which they were asked for."""

    number: int
    key: str
    point: Point
    told: Told


class Journal(Protocol):
    """What is known of candidates, over all runs of this search; ``spent_seconds``: what these took."""

    @property
    def spent_seconds(self) -> float: ...
    def find(self, key: str, share: float) -> Told | None: ...
    def record(self, trial: Trial, elapsed: float) -> None: ...


Score = Callable[[list[Candidate]], list[Told]]
"""Scores candidates, side by side where it can. A candidate that fails is told as such, never raised."""


@dataclass(frozen=True)
class Ended:
    """All that was tried, what the method says, and why it ended: done, or the budget that was used up.

    ``as_sent`` is the recipe itself, one of the trials or the last by its number; at no point where its own
    settings are not in the space.
    """

    trials: tuple[Trial, ...]
    found: Found
    why: str
    evaluations: float
    as_sent: Trial


def drive(
    order: SearchOrder,
    recipe: Mapping[str, Any],
    score: Score,
    journal: Journal,
    *,
    clock: Callable[[], float],
) -> Ended:
    """Searches to the end or the budget. ``recipe`` is written out; ``clock`` gives seconds.

    Raises ``SearchFailed`` where not one candidate could be scored.
    """
    return _Drive(order, recipe, score, journal, clock).run()


class _Drive:
    def __init__(
        self,
        order: SearchOrder,
        recipe: Mapping[str, Any],
        score: Score,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self._order, self._recipe, self._score, self._journal = order, recipe, score, journal
        self._space = order.spaces
        self._clock, self._begun = clock, clock() - journal.spent_seconds
        self._trials: list[Trial] = []
        self._answers: dict[tuple[str, float], Told] = {}
        self._spent = 0.0
        self._device_seconds = 0.0

    def run(self) -> Ended:
        order = self._order
        weights = tuple(each.weight for each in order.objectives)
        task = Task(order.budget.evaluations, weights, order.seed, order.preference, order.reference)
        method = load(order.method)(self._space, order.chosen(), task)
        found, why = self._converse(method)
        if not self._trials:
            said = f"the budget of {why} was used up before the first candidate: give budget.{why} more"
            raise SearchFailed(said)
        if not any(trial.told.values for trial in self._trials):
            raise SearchFailed(f"not one candidate could be scored; the first: {self._first_error()}")
        return Ended(tuple(self._trials), found, why, self._spent, self._as_sent())

    def _converse(self, method: Search) -> tuple[Found, str]:
        try:
            asks = next(method)
            while True:
                why = self._over(asks)
                if why:
                    return Found(), why
                told = self._answer(asks)
                if told is None:
                    return Found(), "evaluations"
                self._give_up_if_hopeless()
                asks = method.send(told)
        except StopIteration as end:
            return end.value, "done"
        finally:
            method.close()

    def _over(self, asks: Sequence[Ask]) -> str | None:
        budget = self._order.budget
        late = budget.seconds is not None and self._clock() - self._begun >= budget.seconds
        if late and not self._was_begun(asks):
            return "seconds"
        if budget.gpu_seconds is not None and self._device_seconds >= budget.gpu_seconds:
            return "gpu_seconds"
        return "evaluations" if self._spent >= budget.evaluations else None

    def _was_begun(self, asks: Sequence[Ask]) -> bool:
        """Whether there is nothing new in a batch, or an earlier run had begun it."""
        share = self._first_share(asks)
        keys = {self._candidate(ask, share).key for ask in asks}
        new = [key for key in keys if (key, share) not in self._answers]
        return not new or any(self._journal.find(key, share) is not None for key in new)

    def _first_share(self, asks: Sequence[Ask]) -> float:
        halving = self._order.halving
        return 1.0 if halving is None or len(asks) < 2 else halving.begin

    def _answer(self, asks: Sequence[Ask]) -> list[Told] | None:
        """What a batch scored; ``None`` where the budget does not reach for all of it."""
        halving = self._order.halving
        if halving is None or len(asks) < 2:
            return self._ask_all(asks, 1.0)
        return self._halved(list(asks), halving)

    def _halved(self, asks: list[Ask], halving: Halving) -> list[Told] | None:
        answers: list[Told | None] = [None] * len(asks)
        still, share = list(range(len(asks))), halving.begin
        task = Task(1, tuple(each.weight for each in self._order.objectives))
        gone: list[list[int]] = []
        while True:
            told = self._ask_all([asks[at] for at in still], share)
            if told is None:
                return None
            for at, each in zip(still, told, strict=True):
                answers[at] = each
            if share >= 1.0:
                return _in_order([each for each in answers if each is not None], [*gone, still], task)
            ranked = sorted(still, key=lambda at: -task.value(answers[at] or Told(None)))
            kept = max(1, math.ceil(len(ranked) / halving.factor))
            still, left = sorted(ranked[:kept]), ranked[kept:]
            gone.append(left)
            share = min(1.0, share * halving.factor)

    def _ask_all(self, asks: Sequence[Ask], share: float) -> list[Told] | None:
        candidates = [self._candidate(ask, share) for ask in asks]
        new = {c.key: c for c in candidates if (c.key, share) not in self._answers}
        if self._spent + share * len(new) > self._order.budget.evaluations + 1e-9:
            return None
        known = {key: self._journal.find(key, share) for key in new}
        wanted = [candidate for key, candidate in new.items() if not _enough(known[key], candidate.ask)]
        fresh = dict(zip((c.key for c in wanted), self._score(wanted) if wanted else [], strict=True))
        for key, candidate in new.items():
            told = fresh.get(key) or known[key]
            assert told is not None
            self._take(candidate, replace(sound(told), share=share), new=key in fresh)
        return [self._answers[c.key, share] for c in candidates]

    def _take(self, candidate: Candidate, told: Told, *, new: bool) -> None:
        trial = Trial(len(self._trials), candidate.key, candidate.ask.point, told)
        self._trials.append(trial)
        self._answers[candidate.key, candidate.share] = told
        self._spent += candidate.share
        self._device_seconds += told.seconds
        if new:
            self._journal.record(trial, self._clock() - self._begun)

    def _candidate(self, ask: Ask, share: float) -> Candidate:
        recipe = self._space.place(self._recipe, ask.point) if ask.point else self._recipe
        return Candidate(digest(recipe), recipe, ask, share)

    def _as_sent(self) -> Trial:
        candidate = self._candidate(Ask(self._space.own(self._recipe)), 1.0)
        for trial in self._trials:
            if (trial.key, trial.told.share) == (candidate.key, 1.0):
                return trial
        known = self._journal.find(candidate.key, 1.0)
        told = sound(known or self._score([candidate])[0])
        trial = Trial(len(self._trials), candidate.key, candidate.ask.point, told)
        if known is None:
            self._journal.record(trial, self._clock() - self._begun)
        return trial

    def _give_up_if_hopeless(self) -> None:
        if len(self._trials) >= HOPELESS and not any(trial.told.values for trial in self._trials):
            raise SearchFailed(f"the first {len(self._trials)} candidates failed: {self._first_error()}")

    def _first_error(self) -> str:
        return next((t.told.error for t in self._trials if t.told.error), "nothing was tried")


def _in_order(answers: Sequence[Told], rounds: Sequence[Sequence[int]], task: Task) -> list[Told]:
    """What a method is told: those that were given up in a round are worse than all that went on, however
    lucky the few examples were that they were scored on, as far apart as they are.
    """
    told, lowest = list(answers), math.inf
    for places in reversed(rounds):
        found = {at: task.value(told[at]) for at in places if told[at].values is not None}
        if not found:
            continue
        best = max(found.values())
        by = max(0.0, best - lowest + EDGE * max(abs(best), abs(lowest))) if lowest < math.inf else 0.0
        for at in found:
            told[at] = replace(told[at], values=tuple(each - by for each in told[at].values or ()))
        lowest = min(lowest, *(value - by for value in found.values()))
    return told


def digest(recipe: Mapping[str, Any]) -> str:
    """What a candidate is known by: sha256 of its whole recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _enough(told: Told | None, ask: Ask) -> bool:
    """Whether an earlier answer has all that is asked for now."""
    if told is None:
        return False
    return told.values is None or told.examples is not None or not ask.examples
