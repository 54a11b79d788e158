"""MAP against brute force: fronts over the domains of bench B, by a grid and by a quarter of its candidates.

Some experts are added to the base (task arithmetic), each with a weight of its own; an objective is the share
of an expert's gain that is kept on its own domain. The volume is what a front has beyond the base, which
keeps nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quality.candidates import SUMMED
from quality.tuner import Pool, Tuner
from quality.tunings import Tuning, weights
from search.front import hypervolume, not_dominated

Point = tuple[float, ...]


@dataclass(frozen=True)
class Problem:
    """Experts whose weights vary, the values of each in the grid, and how many candidates MAP has: samples to
    fit quadratics to, half as many again as these have unknowns, and points of the predicted front that are
    measured.
    """

    experts: tuple[str, ...]
    levels: int
    samples: int
    verify: int

    def tuning(self, method: str) -> Tuning:
        """The search by ``grid`` or ``map``."""
        brute = method == "grid"
        return Tuning(
            method,
            ({"method": SUMMED},),
            weights(self.experts),
            self.levels ** len(self.experts) if brute else self.samples + self.verify,
            "every source's weight",
            {"levels": self.levels} if brute else {"samples": self.samples, "verify": self.verify},
            objectives=self.experts,
            reference=None if brute else (0.0,) * len(self.experts),
            sources=self.experts,
        )


BAR = 0.95
"""The share of the grid's volume that MAP is to reach."""
PROBLEMS = (
    Problem(("python", "german"), 11, 9, 21),
    Problem(("german", "spanish", "arithmetic"), 5, 15, 16),
)


@dataclass(frozen=True)
class Front:
    """What one way of searching measured on one seed: how many candidates, those that no other beats, the
    volume under them, and what they took.
    """

    candidates: int
    points: tuple[Point, ...]
    volume: float
    cpu_seconds: float


@dataclass(frozen=True)
class Compared:
    """Both fronts of a problem on one seed."""

    problem: Problem
    seed: int
    grid: Front
    map: Front

    @property
    def ratio(self) -> float:
        """MAP's volume over the grid's."""
        return self.map.volume / self.grid.volume

    @property
    def unbeaten(self) -> int:
        """How many points of MAP's front no candidate of the grid beats."""
        rivals = np.array(self.grid.points)
        return sum(
            not bool(np.any(np.all(rivals >= point, axis=1) & np.any(rivals > point, axis=1)))
            for point in np.array(self.map.points)
        )


def compared(tuner: Tuner, problem: Problem, seed: int) -> Compared:
    """Searches both ways on validation items. Raises ``NotRunYet`` where only kept results are wanted."""
    with Pool(tuner.bench, seed) as pool:
        fronts = {method: front_of(tuner.search(problem.tuning(method), pool)) for method in ("grid", "map")}
    return Compared(problem, seed, fronts["grid"], fronts["map"])


def front_of(found: Mapping[str, Any]) -> Front:
    """The front of everything a search measured, over a base that keeps nothing."""
    measured = [each["values"] for each in found["trials"] if each["values"] is not None]
    kept = [measured[at] for at in not_dominated(np.array(measured))]
    volume = hypervolume(np.array(kept), [0.0] * len(kept[0]))
    return Front(len(found["trials"]), tuple(map(tuple, kept)), volume, found["cpu_seconds"])


def mean_ratio(rows: Sequence[Compared]) -> float:
    """Over seeds."""
    return sum(row.ratio for row in rows) / len(rows)
