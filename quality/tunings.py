"""Which searches are tried on a bench: a merge, what of it may vary, and how many candidates there may be.

Every search of numbers gets the same budget on a bench, so that what it finds can be held against the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quality.bench import Bench
from quality.candidates import AVERAGE, SUMMED, Steps
from search.order import SearchOrder

HEADLINE = "headline"
"""The objective by which everything is compared: the bench's one number."""
BUDGET: Mapping[str, int] = {"b": 32, "c": 27, "e": 48}
GRID = 4
LEVELS = 3
"""Values of a number in a grid: of two numbers, and of the weights of three sources."""

Places = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Tuning:
    """One search: ``method`` looks for the values of ``space`` in the merge ``steps``, which lets one
    candidate after another be measured. ``tasks`` are those of the headline, ``sources`` the experts that
    are merged; all, unless they are given.
    """

    method: str
    steps: Steps
    space: Places
    evaluations: int
    about: str
    """What varies, for the page."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    objectives: tuple[str, ...] = (HEADLINE,)
    preference: tuple[float, ...] | None = None
    reference: tuple[float, ...] | None = None
    tasks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def chain(self) -> str:
        """The merge, for the page."""
        return " + ".join(f"`{step['method']}`" for step in self.steps)

    def order(self, seed: int) -> SearchOrder:
        """As the service would be asked."""
        return SearchOrder.model_validate(
            {
                "method": self.method,
                "settings": dict(self.settings),
                "space": {name: dict(each) for name, each in self.space.items()},
                "objectives": [{"set": name} for name in self.objectives],
                "budget": {"evaluations": self.evaluations},
                "preference": self.preference,
                "reference": self.reference,
                "seed": seed,
            }
        )


def weights(tasks: Sequence[str], high: float = 1.0) -> dict[str, dict[str, Any]]:
    """A dimension for the weight of every source."""
    return {name: {"at": f"sources.{name}.weight", "low": 0.0, "high": high} for name in tasks}


def tunings(bench: Bench) -> list[Tuning]:
    """Every search method on a merge that it fits."""
    tasks, count = bench.tasks, BUDGET.get(bench.name, 12)
    if bench.adapters:
        return [_sparse(({"method": "cat_svd"},), tasks, count)]
    if bench.measure == "likelihood":
        every = [*_of_sums(tasks, count), *_of_weights(tasks, count), *_of_sources(tasks)]
        only = [replace(each, tasks=each.tasks or tuple(tasks)) for each in every]
        return [*only, *_of_fronts(bench, count)]
    return [*_of_ties(count), *_of_weights(tasks, count), *_of_fronts(bench, count), *_of_sources(tasks)]


def _of_sums(tasks: Sequence[str], count: int) -> list[Tuning]:
    """By likelihood `ties` as it is leaves little to its scale and density (0.02 of 1.00 on validation
    items); adding changes up whole overshoots, with some experts more than with others.
    """
    steps: Steps = ({"method": SUMMED},)
    line = Tuning("line", steps, {"scale": _scale(0.25, 4.0)}, min(16, count), "scale")
    every = "every source's weight"
    grid = Tuning("grid", steps, weights(tasks), LEVELS ** len(tasks), every, {"levels": LEVELS})
    return [line, grid]


def _scale(low: float, high: float) -> dict[str, Any]:
    return {"at": f"steps.{SUMMED}.scale", "low": low, "high": high, "log": True, "start": 1.0}


def _of_ties(count: int) -> list[Tuning]:
    steps = ({"method": "ties"},)
    scale = {"at": "steps.ties.scale", "low": 0.25, "high": 4.0, "log": True, "start": 1.0}
    density = {"at": "steps.ties.density", "low": 0.1, "high": 1.0, "start": 0.2}
    line = Tuning("line", steps, {"scale": scale}, min(16, count), "scale")
    both = {"scale": scale, "density": density}
    grid = Tuning("grid", steps, both, GRID**2, "scale, density", {"levels": GRID})
    return [line, grid]


def _of_weights(tasks: Sequence[str], count: int) -> list[Tuning]:
    steps: Steps = ({"method": SUMMED},)
    space, about = weights(tasks), "every source's weight"
    small = max(4, count // 5)
    scale = _scale(0.2, 5.0)
    return [
        Tuning("cma_es", steps, space, count, about),
        Tuning("tpe", steps, space, count, about, {"startup": small}),
        Tuning("genome", steps, space, count, about, {"population": small}),
        Tuning("m2n2", steps, space, count, about, {"archive": small + 2, "mutation": 0.05}),
        Tuning(
            "self_positioning",
            steps,
            {**space, "scale": scale},
            count,
            "every source's share, one scale",
            {"scale": "scale", "rate": 0.3},
        ),
        _sparse(({"method": "trim"}, *steps), tasks, count),
    ]


def _sparse(steps: Steps, tasks: Sequence[str], count: int) -> Tuning:
    """Evo-Merging: how much of every source is kept, then how far it goes."""
    densities = {
        f"density_{name}": {
            "at": f"sources.{name}.settings.density",
            "low": 0.1,
            "high": 1.0,
            "start": 0.2,
        }
        for name in tasks
    }
    return Tuning(
        "evo_merging",
        steps,
        {**densities, **weights(tasks)},
        count,
        "every source's density, then its weight",
        {"denoise": list(densities), "population": max(4, count // 5), "sigma": 0.2},
    )


def _of_fronts(bench: Bench, count: int) -> list[Tuning]:
    """A front over the experts' tasks and the base's own text, of which the end with most of the first is
    held against what the others found.
    """
    steps: Steps = ({"method": SUMMED},)
    space = weights(bench.tasks)
    about = f"every source's weight; a front over {bench.unit.partition(',')[0]} and {bench.also[0]}"
    two = (HEADLINE, bench.also[0])
    verify = max(2, count // 4)
    return [
        Tuning("nsga", steps, space, count, about, {"population": max(4, count // 5)}, two, (1.0, 0.0)),
        Tuning(
            "map",
            steps,
            space,
            count,
            about,
            {"samples": count - verify, "verify": verify},
            two,
            (1.0, 0.0),
        ),
    ]


def _of_sources(tasks: Sequence[str]) -> list[Tuning]:
    """Which experts help with some of the tasks: the average of all is what choosing is held against."""
    steps: Steps = ({"method": AVERAGE},)
    space = {name: {"at": f"sources.{name}"} for name in tasks}
    wanted = tuple(tasks[1:3])
    about = f"which of {len(tasks)} experts help with {' and '.join(wanted)}"
    return [
        Tuning("greedy_soup", steps, space, 2 * len(tasks), about, tasks=wanted),
        Tuning("expert_subset", steps, space, 4 * len(tasks), about, {"begin": "all"}, tasks=wanted),
    ]
