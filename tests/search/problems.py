"""Problems with known answers, and a journal in memory, for the tests of searches."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.drive import Candidate, Ended, Trial, drive
from search.order import SearchOrder
from search.result import result_of
from search.trial import Told

Problem = Callable[[NDArray[np.float64]], Told]
OPTIMUM = np.array([0.3, 0.7, 0.2, 0.5, 0.9])


class Memory:
    """A journal that forgets at the end of the test."""

    spent_seconds = 0.0

    def __init__(self) -> None:
        self.known: dict[tuple[str, float], Told] = {}

    def find(self, key: str, share: float) -> Told | None:
        return self.known.get((key, share))

    def record(self, trial: Trial, elapsed: float) -> None:
        assert elapsed >= 0
        self.known[trial.key, trial.told.share] = trial.told


def weights_space(count: int, **more: Any) -> dict[str, Any]:
    return {f"x{i}": {"at": f"sources.s{i}.weight", "low": 0, "high": 1, **more} for i in range(count)}


def switch_space(count: int) -> dict[str, Any]:
    return {f"x{i}": {"at": f"sources.s{i}"} for i in range(count)}


def recipe(count: int) -> dict[str, Any]:
    return {
        "sources": [{"id": f"s{i}", "model": f"o/m{i}", "weight": 1.0} for i in range(count)],
        "steps": [{"method": "linear"}],
    }


def order(
    method: str, space: Mapping[str, Any], *, objectives: int = 1, evals: int = 200, **more: Any
) -> SearchOrder:
    return SearchOrder.model_validate(
        {
            "method": method,
            "space": space,
            "objectives": [{"set": f"t{i}"} for i in range(objectives)],
            "budget": {"evaluations": evals},
            **more,
        }
    )


def weights(candidate: Candidate) -> NDArray[np.float64]:
    return np.array([source["weight"] for source in candidate.recipe["sources"]], dtype=float)


def searched(
    asked: SearchOrder, count: int, problem: Problem, journal: Memory | None = None
) -> tuple[Ended, dict[str, Any]]:
    """Drives an order on a problem over the weights of ``count`` sources."""

    def score(candidates: list[Candidate]) -> list[Told]:
        return [problem(weights(each)) for each in candidates]

    ended = drive(asked, recipe(count), score, journal or Memory(), clock=time.monotonic)
    return ended, result_of(asked, recipe(count), ended)


def sphere(x: NDArray[np.float64]) -> Told:
    """Largest, 0, at OPTIMUM; and examples that want one number each."""
    best = OPTIMUM[: len(x)]
    return Told(
        (float(-((x - best) ** 2).sum()),),
        examples=tuple(np.maximum(0, 1 - np.abs(x - best)).tolist()),
    )


def zdt1(x: NDArray[np.float64]) -> Told:
    """ZDT1 (Zitzler, Deb, Thiele 2000), to be made large: its front is f2 = 1 - sqrt(f1)."""
    g = 1 + 9 * x[1:].mean()
    return Told((float(-x[0]), float(-g * (1 - np.sqrt(x[0] / g)))))


def two_hills(x: NDArray[np.float64]) -> Told:
    """Two quadratics; the front is the line between their tops."""
    a, b = np.array([0.2, 0.8]), np.array([0.8, 0.3])
    return Told((float(-((x - a) ** 2).sum()), float(-((x - b) ** 2).sum())))


def three_hills(x: NDArray[np.float64]) -> Told:
    """Three quadratics over what the far corner scores."""
    tops = np.array([[0.2, 0.8, 0.3], [0.8, 0.3, 0.2], [0.5, 0.4, 0.9]])
    return Told(tuple((0.8 - ((x - tops) ** 2).sum(axis=1)).tolist()))


def three_gains(x: NDArray[np.float64]) -> Told:
    """What three experts keep of their gains when each is added with a weight: more of one's own saturates,
    more of others' harms.
    """
    gained = 1 - np.exp(-2.5 * x)
    return Told(tuple((gained / (1 - np.exp(-2.5)) - 0.35 * (x.sum() - x) ** 1.5).tolist()))
