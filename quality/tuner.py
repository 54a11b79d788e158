"""Runs searches on a bench: candidates are merged in memory and scored on validation items, the winner and
the untuned merge on test items.

Every candidate is kept by its recipe as soon as it is scored, so a run that is stopped goes on where it was,
and searches that ask for the same candidate share it. What a search costs is what its candidates took, also
those that another had scored before.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from merge.catalog import catalogue
from merge.checkpoint.index import ModelIndex
from merge.errors import FindingsError, MergeError
from merge.evidence import NOT_YET
from merge.in_memory import InMemory
from merge.plan import make_plan
from merge.recipe.recipe import Recipe
from quality.bench import Held, Scores, Split
from quality.cache import kept, key_of
from quality.candidates import AVERAGE, candidate
from quality.merging import BUDGET
from quality.runner import Bounds, NotRunYet, Runner
from quality.tried import Tried
from quality.tunings import HEADLINE, Tuning
from search.drive import Candidate, Trial, drive
from search.errors import SearchFailed
from search.result import result_of
from search.trial import Told

Document = Mapping[str, Any]
UNSAID: Any = {"objectives": {"__all__": {"member"}}}
"""What no order here says, and so is no part of what a search is kept by."""
COSTS = ("seconds", "cpu_seconds", "merging_cpu_seconds")
"""What a candidate takes: on the clock, of the processor, and of that for the merge."""


@dataclass(frozen=True)
class Tuned:
    """What a search came to: what it found on each seed, and on test items the merge as it found it and as it
    was, and the average of all experts. ``why_not`` says why there is nothing.
    """

    tuning: Tuning
    found: tuple[Mapping[str, Any], ...] = ()
    tuned: Tried | None = None
    untuned: Tried | None = None
    average: Tried | None = None
    why_not: str | None = None


class Nowhere:
    """The journal of a search whose candidates are kept elsewhere."""

    spent_seconds = 0.0

    def find(self, key: str, share: float) -> Told | None:  # noqa: ARG002
        """Nothing."""
        return None

    def record(self, trial: Trial, elapsed: float) -> None:
        """Keeps nothing."""


class Pool:
    """The models of one seed, held open."""

    def __init__(self, bench: Held, seed: int) -> None:
        self.bench, self.seed = bench, seed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "memory" in self.__dict__:
            self.memory.__exit__(kind, error, trace)

    @cached_property
    def models(self) -> Mapping[str, ModelIndex]:
        """What is in each."""
        return self.bench.family(self.seed).indices()

    @cached_property
    def memory(self) -> InMemory:
        """Where they are merged."""
        return InMemory(self.bench.family(self.seed).read(), budget_bytes=BUDGET).__enter__()

    def scored(self, document: Document, split: Split, tasks: Sequence[str]) -> dict[str, Any]:
        """Merges a recipe and scores it; scores, items and what it took."""
        began, cpu = time.monotonic(), time.process_time()
        recipe = Recipe.model_validate(document)
        used = {"base", *(source.id for source in recipe.sources)}
        models = {
            key: index
            for key, index in self.models.items()
            if key in used and (key != "base" or recipe.base is not None)
        }
        tensors = dict(self.memory.tensors(make_plan(recipe, models, budget=BUDGET)))
        merging = time.process_time() - cpu
        scored = self.bench.score(tensors, split, self.seed, tasks)
        taken = (time.monotonic() - began, time.process_time() - cpu, merging)
        cost = {key: round(value, 3) for key, value in zip(COSTS, taken, strict=True)}
        return {"cost": cost, **scored.as_dict()}


class Tuner:
    """Every search on one bench with some seeds; with ``runner.only_kept`` what is missing stays so."""

    def __init__(self, runner: Runner, bench: Held) -> None:
        self.runner, self.bench = runner, bench

    def tuned(self, tuning: Tuning) -> Tuned:
        """Searches on every seed, then tests; a failure is told, not raised."""
        try:
            return self._tuned(tuning)
        except NotRunYet:
            return Tuned(tuning, why_not=NOT_YET)
        except (MergeError, SearchFailed) as error:
            return Tuned(tuning, why_not=str(error))

    def _tuned(self, tuning: Tuning) -> Tuned:
        found, plain = [], self.document(tuning)
        results: dict[str, list[Mapping[str, Any]]] = {"tuned": [], "untuned": [], AVERAGE: []}
        for seed in self.runner.seeds:
            with Pool(self.bench, seed) as pool:
                each = self.search(tuning, pool)
                before = self.scored(pool, plain, "validation", tuning.tasks)
                found.append(each | {"untuned": self._value(tuning, HEADLINE, before, seed)})
                results["tuned"].append(self.scored(pool, each["recipe"], "test"))
                results["untuned"].append(self.scored(pool, plain, "test"))
            results[AVERAGE].append(self.runner.result(seed, "test", AVERAGE, candidate(AVERAGE).steps))
        told = {name: self.runner.tested(name, each, tuning.tasks) for name, each in results.items()}
        over, error = told["tuned"].over(told["untuned"])
        self.runner.say(f"bench {self.bench.name}: {tuning.method}: {over:+.3f} ± {error:.3f} over untuned")
        return Tuned(tuning, tuple(found), told["tuned"], told["untuned"], told[AVERAGE])

    def document(self, tuning: Tuning) -> dict[str, Any]:
        """The merge as it is untuned, written out."""
        steps = [dict(step) for step in tuning.steps]
        based = any(catalogue()[step["method"]].needs["base"] is not False for step in steps)
        asked = {
            **({"base": "bench/base"} if based else {}),
            "sources": [self._source(name) for name in tuning.sources or self.bench.tasks],
            "steps": steps,
        }
        return Recipe.model_validate(asked).model_dump(mode="json")

    def _source(self, name: str) -> dict[str, str]:
        """An expert in the recipe's words; where it lies is no part of what a candidate is kept by."""
        if self.bench.adapters:
            return {"id": name, "model": "bench/base", "adapter": f"bench/{name}"}
        return {"id": name, "model": f"bench/{name}"}

    def search(self, tuning: Tuning, pool: Pool) -> dict[str, Any]:
        """What a search finds on validation items, kept: the best recipe, everything tried, and what it took.

        Raises ``NotRunYet``, ``SearchFailed`` where no candidate could be scored.
        """
        order, document = tuning.order(pool.seed), self.document(tuning)
        version = order.chosen().version
        unsaid = UNSAID if order.reference else UNSAID | {"reference": True}
        facts = {
            "order": order.model_dump(mode="json", exclude=unsaid),
            **({"version": version} if version > 1 else {}),
            "recipe": document,
            "tasks": tuning.tasks,
            "bench": self._facts,
        }
        path = self._folder(pool.seed) / "searches" / f"{tuning.method}-{key_of(facts)}.json"
        if self.runner.only_kept and not path.exists():
            raise NotRunYet
        told: dict[str, Any] = kept(path, partial(self._searched, tuning, pool))
        return told

    def _searched(self, tuning: Tuning, pool: Pool) -> dict[str, Any]:
        order, document = tuning.order(pool.seed), self.document(tuning)
        costs: dict[str, Mapping[str, float]] = {}
        began = time.process_time()
        ended = drive(
            order,
            document,
            lambda wanted: [self._told(tuning, pool, each, costs) for each in wanted],
            Nowhere(),
            clock=time.monotonic,
        )
        self.runner.say(
            f"bench {self.bench.name}, seed {pool.seed}: {tuning.method}: {len(ended.trials)} candidates, "
            f"{time.process_time() - began:.0f} CPU s now"
        )
        found = result_of(order, document, ended)
        taken = [costs[trial.key] for trial in ended.trials if trial.key in costs]
        return {
            "recipe": found["best"]["recipe"],
            "point": found["best"]["point"],
            "values": found["best"]["values"],
            "trials": [{"point": t.point, "values": t.told.values} for t in ended.trials],
            "evaluations": found["evaluations"],
            "failed": found["failed"],
            "notes": found["notes"],
            **{key: round(sum(cost[key] for cost in taken), 3) for key in COSTS},
        }

    def _told(
        self, tuning: Tuning, pool: Pool, candidate: Candidate, costs: dict[str, Mapping[str, float]]
    ) -> Told:
        tasks = tuning.tasks if HEADLINE in tuning.objectives else tuning.objectives
        try:
            result = self.scored(pool, candidate.recipe, "validation", tasks)
        except (MergeError, ValueError) as error:
            message = error.findings[0].message if isinstance(error, FindingsError) else str(error)
            return Told(None, error=message)
        costs[candidate.key] = result["cost"]
        values = tuple(self._value(tuning, name, result, pool.seed) for name in tuning.objectives)
        return Told(values, examples=self._examples(result) if candidate.ask.examples else None)

    def _examples(self, result: Mapping[str, Any]) -> tuple[float, ...]:
        """What each example of the experts' tasks scored, not negative: bits become a likelihood."""
        each = [value for task in self.bench.tasks for value in result["items"][task]]
        return tuple(value if self.bench.measure == "accuracy" else 2.0**value for value in each)

    def _value(self, tuning: Tuning, objective: str, result: Mapping[str, Any], seed: int) -> float:
        """An objective of a candidate on validation items: the headline; a task's share of its expert's
        gain, accuracy or likelihood; another text's own score.
        """
        scores: Scores = result["scores"]
        if objective == HEADLINE:
            return self.runner.headline(seed, "validation", scores, tuning.tasks)
        if self.bench.measure != "gain" or objective not in self.bench.tasks:
            return scores[objective]
        bounds: Bounds = self._bounds[seed]
        base = bounds.base[objective]
        return 100 * (scores[objective] - base) / (bounds.own[objective] - base)

    @cached_property
    def _bounds(self) -> Mapping[int, Bounds]:
        return {seed: self.runner.bounds(seed, "validation") for seed in self.runner.seeds}

    def scored(
        self, pool: Pool, document: Document, split: Split, tasks: Sequence[str] = ()
    ) -> dict[str, Any]:
        """A recipe's scores on a split, kept."""
        versions = {step["method"]: catalogue()[step["method"]].version for step in document["steps"]}
        facts = {"recipe": document, "versions": versions, "bench": self._facts, "tasks": tasks}
        path = self._folder(pool.seed) / "candidates" / f"{split}-{key_of(facts)}.json"
        if self.runner.only_kept and not path.exists():
            raise NotRunYet
        told: dict[str, Any] = kept(path, partial(pool.scored, document, split, tasks))
        return told

    @property
    def _facts(self) -> dict[str, Any]:
        return asdict(self.bench.items)

    def _folder(self, seed: int) -> Path:
        return self.bench.folder / "results" / f"seed-{seed}" / "search"
