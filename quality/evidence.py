"""From what was run to the committed file that the catalogue, the API and the pages read."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from merge.evidence import FILE
from quality.bench import Bench, headline
from quality.cache import libraries, write
from quality.candidates import AVERAGE
from quality.reasons import REASONS
from quality.runner import Bounds, Runner
from quality.tried import Tried


@dataclass(frozen=True)
class Outcome:
    """All that was run on one bench."""

    bench: Bench
    seeds: tuple[int, ...]
    bounds: tuple[Bounds, ...]
    tried: tuple[Tried, ...]

    @property
    def base(self) -> float:
        """The base's headline, mean over seeds."""
        return mean(headline(self.bench, b.base, b.base, b.own) for b in self.bounds)

    @property
    def experts(self) -> float:
        """The headline of the experts, each on its own task."""
        return mean(headline(self.bench, b.own, b.base, b.own) for b in self.bounds)

    @property
    def average(self) -> Tried:
        """Plain averaging."""
        return next(tried for tried in self.tried if tried.name == AVERAGE)


def outcome_of(runner: Runner, only: Sequence[str] = ()) -> Outcome:
    """Runs what is missing and gathers all of it."""
    tried = tuple(runner.every_method(only))
    bounds = tuple(runner.bounds(seed) for seed in runner.seeds)
    return Outcome(runner.bench, runner.seeds, bounds, tried)


def made(command: str) -> dict[str, Any]:
    """When, by what and with which versions pages are made."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return {"command": command, "date": today, "versions": libraries()}


def write_evidence(outcomes: Sequence[Outcome], command: str, file: Path = FILE) -> None:
    """Writes the file whole."""
    methods: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        for tried in outcome.tried:
            told = _told(outcome, tried)
            if not tried.variant:
                methods.setdefault(tried.name, {})[outcome.bench.name] = told
            elif not tried.why_not:
                found = methods[tried.name][outcome.bench.name].setdefault("variants", {})
                found[tried.variant] = {key: told[key] for key in ("value", "stderr")}
    for name, found in methods.items():
        below = found.get("a", {}).get("over_average", 0) < 0
        if below and name in REASONS:
            found["reason"] = REASONS[name]
    whole = {
        "made": made(command),
        "benches": {outcome.bench.name: _bench(outcome) for outcome in outcomes},
        "methods": dict(sorted(methods.items())),
    }
    write(file, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def _bench(outcome: Outcome) -> dict[str, Any]:
    bench = outcome.bench
    return {
        "title": bench.title,
        "unit": bench.unit,
        "seeds": len(outcome.seeds),
        "base": round(outcome.base, 2),
        "experts": round(outcome.experts, 2),
        "average": round(outcome.average.headline[0], 2),
    }


def _told(outcome: Outcome, tried: Tried) -> dict[str, Any]:
    if tried.why_not:
        return {"why_not": tried.why_not}
    value, error = tried.headline
    over, over_error = tried.over(outcome.average)
    told: dict[str, Any] = {
        "value": round(value, 2),
        "stderr": round(error, 2),
        "over_average": round(over, 2),
        "over_average_stderr": round(over_error, 2),
        "chain": [step["method"] for step in tried.steps],
    }
    if tried.setting is not None:
        told |= {"setting": tried.setting, "at": tried.value}
    return told


def means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every task over seeds."""
    return {task: mean(each[task] for each in scores) for task in scores[0]}
