"""What a candidate of a search scores: planned, made and scored, or found among what was scored before."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from merge.checkpoint.index import ModelIndex
from merge.errors import DiskFull, MergeError, Stopped
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from merge.recipe.stages import ADAPTER, leaves
from scoring.errors import HarnessMissing, ScoringError, ScoringStopped
from scoring.score import Score, is_perplexity
from scoring.settings import metrics_of
from scoring.tasks import Task
from search.drive import Candidate
from search.errors import MetricMissing
from search.order import Objective
from search.trial import Told, sound
from worker.endings import is_out_of_memory
from worker.given_back import Member
from worker.log import redacted
from worker.makers import Maker, Part, Sets

log = structlog.get_logger("worker.candidates")

BROKEN = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
"""What a merge or a scorer that does not bear a candidate may raise; a recipe that is not valid too."""
NO_FAULT = (Stopped, ScoringStopped, DiskFull, HarnessMissing)
"""Errors of merging and scoring that would befall every candidate, and so end the search."""
NO_FILTER = ",none"
"""What the harness writes behind a metric that no filter stands before."""
SHOWN = 20
"""Metrics that a sentence names at most."""

Scores = dict[Member, list[Score]]
Wanted = Mapping[Member, Part]


class Known(Protocol):
    """Scores of candidates that an earlier job has had."""

    def find(self, plan: Plan, wanted: Wanted, examples: bool) -> Scores:
        """Those of all that is wanted, as far as they are known; with the value of every item if
        ``examples`` are wanted.
        """

    def keep(self, plan: Plan, wanted: Wanted, examples: bool, found: Scores) -> None:
        """Remembers them."""


class Nothing:
    """Remembers nothing."""

    def find(self, plan: Plan, wanted: Wanted, examples: bool) -> Scores:
        """None of them."""
        del plan, examples
        return {member: [] for member in wanted}

    def keep(self, plan: Plan, wanted: Wanted, examples: bool, found: Scores) -> None:
        """Forgets them."""


@dataclass(frozen=True)
class Bench:
    """Where the candidates of one search are made and scored.

    ``models`` and ``statistics`` are those of the recipe, by key; ``budget_bytes`` is for the merge.
    """

    maker: Maker
    sets: Sets
    models: Mapping[str, ModelIndex]
    statistics: Mapping[str, Path]
    objectives: Sequence[Objective]
    budget_bytes: int
    known: Known
    clock: Callable[[], float] = time.monotonic

    def told(self, candidate: Candidate) -> Told:
        """What a candidate scores; one that cannot be merged or scored is told with the reason.

        Raises what is no fault of the candidate: ``Stopped`` and ``ScoringStopped``, what memory or disk
        lack, ``HarnessMissing``, and ``MetricMissing`` for a metric that no candidate will have.
        """
        begun = self.clock()
        try:
            scores, reused = self._scores(candidate)
            values = tuple(self._value(each, scores) for each in self.objectives)
        except NO_FAULT:
            raise
        except (MergeError, ScoringError, *BROKEN) as error:
            if is_out_of_memory(error):
                raise
            log.warning("candidate_failed", point=candidate.ask.point, error=str(error), exc_info=error)
            said = redacted(f"{type(error).__name__}: {error}")
            return Told(None, error=said, seconds=self.clock() - begun)
        examples = self._examples(scores) if candidate.ask.examples else None
        return sound(Told(values, examples=examples, seconds=self.clock() - begun, reused=reused))

    def _scores(self, candidate: Candidate) -> tuple[Scores, bool]:
        """The scores of all that objectives look at, and whether nothing of it had to be made."""
        plan, examples = self._plan(candidate), candidate.ask.examples
        wanted = self._wanted(plan, candidate.share)
        found = self.known.find(plan, wanted, examples)
        lacking = {
            member: self.sets.part(part.share, names)
            for member, part in wanted.items()
            if (names := [name for name in part.names if name not in {s.task for s in found[member]}])
        }
        if not lacking:
            return found, True
        fresh = self.maker.scores(plan, lacking)
        self.known.keep(plan, lacking, examples, fresh)
        return {member: [*scores, *fresh.get(member, ())] for member, scores in found.items()}, False

    def _plan(self, candidate: Candidate) -> Plan:
        recipe = recipe_from(dict(candidate.recipe))
        used = {each.role.removesuffix(ADAPTER) for each in leaves(recipe)}
        models = {key: index for key, index in self.models.items() if key in used}
        return make_plan(recipe, models, budget=self.budget_bytes, measured=tuple(self.statistics))

    def _wanted(self, plan: Plan, share: float) -> dict[Member, Part]:
        """What objectives look at: the sets of each member, or of the only one that there is."""
        names: dict[Member, list[str]] = {}
        for objective in self.objectives:
            for member in _members(plan, objective):
                names.setdefault(member, []).append(objective.set)
        return {member: self.sets.part(share, _in_order(self.sets, own)) for member, own in names.items()}

    def _value(self, objective: Objective, scores: Scores) -> float:
        each = [value_of(objective, own, self.sets.tasks) for own in _of(objective, scores)]
        return math.fsum(each) / len(each)

    def _examples(self, scores: Scores) -> tuple[float, ...] | None:
        """What each example of the first objective scored; of several members the mean."""
        first = self.objectives[0]
        each = [examples_of(first, own, self.sets.tasks) for own in _of(first, scores)]
        whole = [values for values in each if values is not None]
        if len(whole) < len(each):
            return None
        return tuple(math.fsum(values) / len(values) for values in zip(*whole, strict=True))


def _members(plan: Plan, objective: Objective) -> tuple[Member, ...]:
    """Those that an objective looks at. Raises ``LookupError`` for one that this candidate does not have."""
    if plan.bundle is None:
        return (None,)
    if objective.member is None:
        return plan.bundle.members
    if objective.member not in plan.bundle.members:
        raise LookupError(f"this candidate has no member {objective.member!r}, which is to be scored")
    return (objective.member,)


def _of(objective: Objective, scores: Scores) -> list[list[Score]]:
    """The scores of the members that an objective looks at."""
    return [own for member, own in scores.items() if objective.member in (None, member)]


def _in_order(sets: Sets, names: Sequence[str]) -> list[str]:
    return [task.name for task in sets.tasks if task.name in names]


def score_of(objective: Objective, scores: Sequence[Score], tasks: Sequence[Task]) -> Score:
    """The score that an objective means. Raises ``MetricMissing`` where its set has given others."""
    task = next(task for task in tasks if task.name == objective.set)
    wanted = objective.metric or metrics_of(task.kind, task.settings)[0]
    own = {each.metric: each for each in scores if each.task == objective.set}
    found = own.get(wanted) or own.get(wanted.removesuffix(NO_FILTER))
    if found is None:
        raise MetricMissing(
            f"the set {objective.set!r} does not measure {wanted!r}, but {_listed(list(own))}: name one of "
            "these in the objective"
        )
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def value_of(objective: Objective, scores: Sequence[Score], tasks: Sequence[Task]) -> float:
    """The objective's number, turned so that higher is better."""
    score = score_of(objective, scores, tasks)
    return score.value if _upwards(objective, score) else -score.value


def _upwards(objective: Objective, score: Score) -> bool:
    """Whether the objective wants the number large."""
    return score.higher_is_better if objective.goal is None else objective.goal == "max"


def examples_of(
    objective: Objective, scores: Sequence[Score], tasks: Sequence[Task]
) -> tuple[float, ...] | None:
    """What each example of the first objective scored, not negative: of what is to be small, exp(-number);
    of perplexities, which are exp(loss) already, one over the number.
    """
    score = score_of(objective, scores, tasks)
    if score.per_example is None:
        return None
    if _upwards(objective, score):
        return tuple(max(0.0, each) for each in score.per_example)
    if is_perplexity(score.metric):
        return tuple(1 / each for each in score.per_example)
    return tuple(math.exp(-each) for each in score.per_example)


def without_examples(scores: Sequence[Score]) -> list[Score]:
    """The scores alone, without the value of every item."""
    return [replace(each, per_example=None, weights=None) for each in scores]
