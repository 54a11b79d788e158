"""Runs methods on a bench: tunes each one's coefficient on validation items, then scores it on test items.

Every number is kept as soon as it is there, one JSON file a (seed, split, recipe), so a run that is stopped
goes on where it was. Coefficients are looked for on the first seed and hold for all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from merge.catalog import catalogue
from merge.errors import FindingsError, MergeError
from merge.evidence import NOT_YET
from quality.bench import Bench, Scores, Split, headline, slopes_of
from quality.cache import kept, key_of
from quality.candidates import Candidate, Steps, candidates, climb
from quality.merging import NOTHING_OWN, Own, merged
from quality.reasons import UNFIT
from quality.tried import Items, Tried

TUNED_ON = 0
REVERSIBLE = "rmm"
"""The method that keeps adapters so that each can be given back."""


@dataclass(frozen=True)
class Bounds:
    """What the base and the experts score on one seed's items; an expert by every task."""

    base: Scores
    experts: Mapping[str, Scores]
    base_items: Items

    @property
    def own(self) -> Scores:
        """Each expert's score on its own task."""
        return {task: scores[task] for task, scores in self.experts.items()}


NOTHING = Bounds({}, {}, {})
"""Where the headline is no gain, it needs none."""


class NotRunYet(Exception):
    """A number is asked for that no run has made."""


class Runner:
    """Everything that is run on one bench with some seeds; with ``only_kept`` what is missing stays so."""

    def __init__(
        self,
        bench: Bench,
        seeds: Sequence[int],
        say: Callable[[str], None] = print,
        *,
        only_kept: bool = False,
    ) -> None:
        self.bench, self.seeds, self.say, self.only_kept = bench, tuple(seeds), say, only_kept

    def bounds(self, seed: int, split: Split = "test") -> Bounds:
        """The scores of the base and of every expert."""
        family = self.bench.family(seed)
        found = {
            name: self._kept(
                self._path(seed, split, f"model-{name}", {}), partial(self._score, folder, split, seed)
            )
            for name, folder in family.folders.items()
        }
        base = found.pop("base")
        return Bounds(base["scores"], {name: each["scores"] for name, each in found.items()}, base["items"])

    def headline(self, seed: int, split: Split, scores: Scores, tasks: Sequence[str] = ()) -> float:
        """The one number of a model on one seed, of all tasks or of some."""
        if self.bench.measure != "gain":
            return headline(self.bench, scores, {}, {}, tasks)
        bounds = self.bounds(seed, split)
        return headline(self.bench, scores, bounds.base, bounds.own, tasks)

    def every_method(self, only: Sequence[str] = ()) -> list[Tried]:
        """Each method of the catalogue (or those named), tuned and tested."""
        found = []
        for each in candidates(len(self.bench.tasks), adapters=self.bench.adapters):
            if isinstance(each, Candidate):
                name, why_not = each.name, UNFIT.get((self.bench.name, each.name))
            else:
                name, why_not = each
            if only and name not in only:
                continue
            if isinstance(each, Candidate) and why_not is None:
                found.append(self.tried(each))
            else:
                found.append(Tried(name, why_not=why_not))
        if self.bench.adapters and (not only or REVERSIBLE in only):
            found += [self.given_back(count) for count in range(len(self.bench.tasks))]
        return found

    def given_back(self, components: int) -> Tried:
        """What a mean and so many shared directions give back of each adapter: every one scored on its own
        task, and all of them on the base's own texts.
        """
        steps: Steps = ({"method": REVERSIBLE, "components": components},)
        variant = f"given back by {components} direction{'' if components == 1 else 's'}"
        try:
            results = [self._given_back(seed, steps) for seed in self.seeds]
        except NotRunYet:
            return Tried(REVERSIBLE, why_not=NOT_YET, variant=variant)
        return replace(self.tested(REVERSIBLE, results), steps=steps, variant=variant)

    def _given_back(self, seed: int, steps: Steps) -> dict[str, Any]:
        """One member after the other, and all of them as one."""
        members = {
            task: self.result(seed, "test", f"{REVERSIBLE} {task}", steps, own={task: {"restore": True}})
            for task in self.bench.tasks
        }
        scores = {task: each["scores"][task] for task, each in members.items()}
        scores |= {text: mean(each["scores"][text] for each in members.values()) for text in self.bench.also}
        costs = [each["cost"] for each in members.values()]
        return {
            "scores": scores,
            "items": {task: each["items"][task] for task, each in members.items()},
            "cost": {name: max(cost[name] for cost in costs) for name in costs[0]},
        }

    def tried(self, candidate: Candidate, value: float | None = None) -> Tried:
        """A method, tuned unless a ``value`` is given, then tested on every seed; a failure is told, not
        raised.
        """
        try:
            return self._tried(candidate, value)
        except NotRunYet:
            return Tried(candidate.name, why_not=NOT_YET, variant=candidate.variant)
        except (MergeError, FindingsError) as error:
            told = error.findings[0].message if isinstance(error, FindingsError) else str(error)
            self.say(f"bench {self.bench.name}: {candidate.name}: {told}")
            return Tried(candidate.name, why_not=told, variant=candidate.variant)

    def _tried(self, candidate: Candidate, value: float | None) -> Tried:
        heard: dict[float, float] = {}
        if candidate.setting is not None and value is None:
            value, _ = climb(candidate.rungs, candidate.start, partial(self._validated, candidate, heard))
        steps = candidate.with_value(value)
        results = [self.result(seed, "test", candidate.name, steps) for seed in self.seeds]
        at = "" if value is None else f" at {candidate.setting} {value:g}"
        found = replace(
            self.tested(candidate.name, results),
            steps=steps,
            setting=candidate.setting,
            value=value,
            validation=dict(sorted(heard.items())),
            variant=candidate.variant,
        )
        self.say(f"bench {self.bench.name}: {found.label}{at}: {mean(found.headlines):.2f}")
        return found

    def tested(self, name: str, results: Sequence[Mapping[str, Any]], tasks: Sequence[str] = ()) -> Tried:
        """What test items of all tasks, or of some, said of a merge: one result a seed."""
        gain = self.bench.measure == "gain"
        bounds = [self.bounds(seed) if gain else NOTHING for seed in self.seeds]
        return Tried(
            name,
            headlines=tuple(
                self.headline(seed, "test", r["scores"], tasks)
                for seed, r in zip(self.seeds, results, strict=True)
            ),
            slopes=tuple(slopes_of(self.bench, each.base, each.own, tasks) for each in bounds),
            scores=tuple(r["scores"] for r in results),
            items=tuple(r["items"] for r in results),
            costs=tuple(r["cost"] for r in results),
            zero=tuple(each.base_items for each in bounds) if gain else (),
        )

    def _validated(self, candidate: Candidate, heard: dict[float, float], value: float) -> float:
        result = self.result(TUNED_ON, "validation", candidate.name, candidate.with_value(value))
        heard[value] = self.headline(TUNED_ON, "validation", result["scores"])
        return heard[value]

    def result(
        self, seed: int, split: Split, name: str, steps: Steps, own: Own = NOTHING_OWN
    ) -> dict[str, Any]:
        """Scores and costs of one recipe on one seed, kept; ``own`` are settings of single sources."""
        versions = {step["method"]: catalogue()[step["method"]].version for step in steps}
        facts = {"steps": steps, "versions": versions, "tokens": self.bench.tokens}
        path = self._path(seed, split, name, facts | ({"own": own} if own else {}))
        return self._kept(path, partial(self._merge_and_score, seed, split, steps, own))

    def _kept(self, path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.only_kept and not path.exists():
            raise NotRunYet
        told: dict[str, Any] = kept(path, make)
        return told

    def _merge_and_score(self, seed: int, split: Split, steps: Steps, own: Own) -> dict[str, Any]:
        family = self.bench.family(seed)
        needs_base = any(catalogue()[step["method"]].needs["base"] is not False for step in steps)
        work = self.bench.folder / "work"
        tokens = self.bench.tokens
        with merged(family, steps, tokens, work, needs_base=needs_base, own=own) as (folder, cost):
            scored = self._score(folder, split, seed)
        return {"steps": list(map(dict, steps)), "cost": cost.as_dict(), **scored}

    def _score(self, folder: Path, split: Split, seed: int) -> dict[str, Any]:
        return self.bench.score(folder, split, seed).as_dict()

    def _path(self, seed: int, split: Split, name: str, facts: Mapping[str, Any]) -> Path:
        whole = {**facts, "items": asdict(self.bench.items), "tokens": self.bench.tokens}
        return self.bench.folder / "results" / f"seed-{seed}" / split / f"{name}-{key_of(whole)}.json"
