"""Merges and scores the candidates of a search, in memory: no checkpoint is written."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from merge.checkpoint.index import ModelIndex
from merge.errors import MergeError, Stopped
from merge.in_memory import InMemory
from merge.plan import make_plan
from merge.recipe import Recipe
from scoring.candidates import Candidates
from scoring.errors import ScoringError, ScoringStopped
from scoring.score import Score
from scoring.settings import METRICS
from scoring.tasks import Task
from search.drive import Candidate
from search.order import Objective
from search.trial import Told, sound
from worker.endings import is_out_of_memory

log = structlog.get_logger("worker.candidates")

ITEMS = ("texts", "questions", "prompts", "items", "pairs", "queries")
LEAST_ITEMS = 3
BROKEN = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
"""What a merge or a scorer that does not bear a candidate may raise; a recipe that is not valid too."""


@dataclass
class Bench:
    """One model in memory that takes the weights of every candidate, and the merge that makes these.

    ``models`` and ``statistics`` are those of the recipe, by key; ``budget_bytes`` is for the merge.
    """

    memory: InMemory
    model: Candidates
    models: Mapping[str, ModelIndex]
    statistics: Mapping[str, Path]
    objectives: Sequence[Objective]
    budget_bytes: int
    should_stop: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    _parts: dict[float, Candidates] = field(default_factory=dict)

    def told(self, candidate: Candidate) -> Told:
        """What a candidate scores; one that cannot be merged or scored is told with the reason.

        Raises ``Stopped`` and ``ScoringStopped``, and what memory or disk lack: no fault of the candidate.
        """
        begun = self.clock()
        try:
            scores = self._scores(candidate)
        except (Stopped, ScoringStopped):
            raise
        except (MergeError, ScoringError, *BROKEN) as error:
            if is_out_of_memory(error):
                raise
            log.warning("candidate_failed", point=candidate.ask.point, error=str(error), exc_info=error)
            return Told(None, error=f"{type(error).__name__}: {error}", seconds=self.clock() - begun)
        values = tuple(value_of(each, scores, self.model.tasks) for each in self.objectives)
        examples = (
            examples_of(self.objectives[0], scores, self.model.tasks) if candidate.ask.examples else None
        )
        return sound(Told(values, examples=examples, seconds=self.clock() - begun))

    def _scores(self, candidate: Candidate) -> list[Score]:
        recipe = Recipe.model_validate(candidate.recipe)
        used = {source.id for source in recipe.sources}
        models = {key: index for key, index in self.models.items() if key in used or key == "base"}
        plan = make_plan(recipe, models, budget=self.budget_bytes, measured=tuple(self.statistics))
        tensors = self.memory.tensors(plan, self.statistics)
        return self._model(candidate.share).score(tensors, should_stop=self.should_stop)

    def _model(self, share: float) -> Candidates:
        if share >= 1.0:
            return self.model
        if share not in self._parts:
            tasks = [part_of(task, share) for task in self.model.tasks]
            self._parts[share] = self.model.on(tasks, per_example=True)
        return self._parts[share]


def part_of(task: Task, share: float) -> Task:
    """The task with the first ``share`` of its items."""
    name = next(each for each in ITEMS if hasattr(task, each))
    items = getattr(task, name)
    kept = max(LEAST_ITEMS, math.ceil(share * len(items)))
    return replace(task, **{name: items[:kept]})


def score_of(objective: Objective, scores: Sequence[Score], tasks: Sequence[Task]) -> Score:
    """The score that an objective means."""
    kind = next(task.kind for task in tasks if task.name == objective.set)
    wanted = objective.metric or METRICS[kind][0]
    return next(each for each in scores if each.task == objective.set and each.metric == wanted)


def value_of(objective: Objective, scores: Sequence[Score], tasks: Sequence[Task]) -> float:
    """The objective's number, turned so that higher is better."""
    score = score_of(objective, scores, tasks)
    upwards = score.higher_is_better if objective.goal is None else objective.goal == "max"
    return score.value if upwards else -score.value


def examples_of(
    objective: Objective, scores: Sequence[Score], tasks: Sequence[Task]
) -> tuple[float, ...] | None:
    """What each example of the first objective scored, not negative: losses become exp(-loss)."""
    score = score_of(objective, scores, tasks)
    if score.per_example is None:
        return None
    if score.higher_is_better:
        return tuple(max(0.0, each) for each in score.per_example)
    return tuple(math.exp(-each) for each in score.per_example)
