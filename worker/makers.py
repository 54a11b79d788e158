"""The two ways to a candidate's scores: its weights are put into one model that is held in memory, or the
ordinary engine writes it, and it is loaded as any result is. Both give the same numbers.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from merge.in_memory import InMemory
from merge.plan import Plan
from merge.run import run
from scoring.candidates import Candidates
from scoring.digest import task_digest
from scoring.harness.task import HarnessTask
from scoring.score import Score
from scoring.tasks import Task
from worker.given_back import Means, Member, give_back, is_whole
from worker.measures import Heads, measure

ITEMS = ("texts", "questions", "prompts", "items", "pairs", "queries", "rows")
LEAST_ITEMS = 3
WHOLE = 1.0
MADE = "made"
"""What a merge writes."""


@dataclass(frozen=True)
class Part:
    """The first ``share`` of the items of some evaluation sets."""

    share: float
    tasks: tuple[Task, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sets."""
        return tuple(task.name for task in self.tasks)

    @cached_property
    def digests(self) -> dict[str, str]:
        """What the items of each set and its settings are known by."""
        return {task.name: task_digest(task) for task in self.tasks}


@dataclass(frozen=True)
class Sets:
    """The evaluation sets of a search; a part of them is cut once."""

    tasks: Sequence[Task]
    _cut: dict[tuple[float, tuple[str, ...]], Part] = field(default_factory=dict)

    def part(self, share: float, names: Sequence[str]) -> Part:
        """The first ``share`` of the items of the sets of these names."""
        key = (share, tuple(names))
        if key not in self._cut:
            kept = [task for task in self.tasks if task.name in names]
            whole = share >= WHOLE
            self._cut[key] = Part(share, tuple(task if whole else part_of(task, share) for task in kept))
        return self._cut[key]


def part_of(task: Task, share: float) -> Task:
    """The task with the first ``share`` of its items; of a built-in task of lm_eval whose number nobody knows
    here, that share as its limit.
    """
    if isinstance(task, HarnessTask) and task.settings.config is None:
        limit = share if task.limit is None else max(LEAST_ITEMS, math.ceil(share * task.limit))
        return replace(task, limit=limit)
    name = next(each for each in ITEMS if hasattr(task, each))
    items = getattr(task, name)
    kept = max(LEAST_ITEMS, math.ceil(share * len(items)))
    return replace(task, **{name: items[:kept]})


class Maker(Protocol):
    """Makes a candidate by its plan, and scores it."""

    def scores(self, plan: Plan, wanted: Mapping[Member, Part]) -> dict[Member, list[Score]]:
        """The scores on all that is wanted of each member, with the value of every item.

        Raises what a merge and what scoring raise.
        """


@dataclass(frozen=True)
class Ground:
    """What candidates are made from: models and ``statistics`` in folders by key, and ``heads``, which makes
    the zero-shot heads of all. ``scratch`` is a folder that is there only while a candidate is written.
    """

    folders: Mapping[str, Path]
    statistics: Mapping[str, Path]
    heads: Heads
    scratch: Path
    device: str
    budget_bytes: int
    threads: int
    should_stop: Callable[[], bool] = lambda: False
    hub_endpoint: str = ""

    @property
    def means(self) -> Means:
        """What a merge is made with."""
        return Means(self.budget_bytes, self.threads, self.device, self.should_stop)

    @contextmanager
    def maker(self, plan: Plan, tasks: Sequence[Task], *, written: bool) -> Iterator[Maker]:
        """Makes candidates of the plan's recipe until it is left. Raises what opening a model raises."""
        if written:
            maker = Written(self)
            maker.clear()  # an earlier search here may have been killed in the middle
            yield maker
            return
        folder, heads = self.folders[plan.reference], self.heads.of(tasks)
        how = {"budget_bytes": self.budget_bytes, "threads": self.threads}
        with InMemory(self.folders, **how, device=self.device, should_stop=self.should_stop) as memory:
            model = Candidates.open(folder, tasks, device=self.device, per_example=True, heads=heads)
            yield InHand(self, memory, model)


@dataclass
class InHand:
    """One model in memory takes the weights of every candidate: of what has no members."""

    ground: Ground
    memory: InMemory
    model: Candidates
    _before: dict[tuple[float, tuple[str, ...]], Candidates] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before[WHOLE, tuple(task.name for task in self.model.tasks)] = self.model

    def scores(self, plan: Plan, wanted: Mapping[Member, Part]) -> dict[Member, list[Score]]:
        """As of any maker; nothing is written."""
        ((member, part),) = wanted.items()
        model = self._model(part)
        tensors = self.memory.tensors(plan, self.ground.statistics)
        return {member: model.score(tensors, should_stop=self.ground.should_stop)}

    def _model(self, part: Part) -> Candidates:
        key = (part.share, part.names)
        if key not in self._before:
            self._before[key] = self.model.on(part.tasks, per_example=True)
        return self._before[key]


@dataclass(frozen=True)
class Written:
    """Every candidate is a merge into the scratch folder, which goes once it is scored, or has failed."""

    ground: Ground

    def scores(self, plan: Plan, wanted: Mapping[Member, Part]) -> dict[Member, list[Score]]:
        """As of any maker; one checkpoint at a time is on the disk, beside the adapter or bundle it is of."""
        at = self.ground
        self.clear()
        at.scratch.mkdir(parents=True)
        try:
            made = self._made(plan)
            return {member: self._scored(plan, made, member, part) for member, part in wanted.items()}
        finally:
            self.clear()

    def clear(self) -> None:
        """Removes what is there of a candidate."""
        shutil.rmtree(self.ground.scratch, ignore_errors=True)

    def _scored(self, plan: Plan, made: Path, member: Member, part: Part) -> list[Score]:
        at = self.ground
        if is_whole(plan):
            folder = made
        else:
            folder = give_back(plan, made, member, at.folders, at.means, at.scratch).out
        found = measure(
            folder,
            part.tasks,
            at.heads,
            device=at.device,
            hub_endpoint=at.hub_endpoint,
            on_progress=lambda _: None,
            should_stop=at.should_stop,
        )
        if folder != made:
            shutil.rmtree(folder)
        return found

    def _made(self, plan: Plan) -> Path:
        at = self.ground
        made = run(
            plan,
            at.folders,
            at.scratch / MADE,
            budget_bytes=at.budget_bytes,
            threads=at.threads,
            device=at.device,
            should_stop=at.should_stop,
            survey="none",
            statistics=at.statistics,
        )
        return made.out
