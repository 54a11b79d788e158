"""Shares of the sources and one scale, by gradient steps; held against steps written out."""

import contextlib
from typing import Any

import numpy as np
import pytest

from search.methods import load
from search.methods.self_positioning import softmax, through_softmax
from search.settings import SelfPositioningSettings
from search.space import Space
from search.trial import Task, Told
from tests.search.problems import order, searched, weights_space


def test_self_positioning_climbs_to_the_shares_that_are_best() -> None:
    top = np.array([0.2, 0.5, 0.3])

    def quadratic(x: np.ndarray) -> Told:  # type: ignore[type-arg]
        return Told((float(-((x - top) ** 2).sum()),))

    _, result = searched(
        order("self_positioning", weights_space(3), evals=800, settings={"steps": 200, "difference": 0.002}),
        3,
        quadratic,
    )
    assert [result["best"]["point"][f"x{i}"] for i in range(3)] == pytest.approx(top.tolist(), abs=1e-2)


def test_self_positioning_takes_adam_s_steps_on_shares_and_on_the_common_scale() -> None:
    tops, by, rate = np.array([2.0, 1.0]), 0.01, 0.3
    space = Space.model_validate({"dimensions": {
        "x0": {"at": "sources.s0.weight", "low": 0, "high": 2},
        "scale": {"at": "steps.0.scale", "low": 0.25, "high": 1.5, "start": 1.4},
        "x1": {"at": "sources.s1.weight", "low": 0, "high": 1},
    }})  # fmt: skip
    settings = SelfPositioningSettings(scale="scale", steps=4, difference=by, rate=rate)

    def value(x: Any) -> float:
        return float(-((x[0] - 0.5) ** 2) - 3 * (x[1] - 0.9) ** 2 + x[2] ** 2)

    search, seen = load("self_positioning")(space, settings, Task(50, (1.0,), 0)), []
    asks = next(search)
    with contextlib.suppress(StopIteration):
        while True:
            points = [[each.point[name] for name in ("x0", "x1", "scale")] for each in asks]
            seen.append(points[0])
            asks = search.send([Told((value(point),)) for point in points])
    u, scale, first, second = np.zeros(2), 1.4, np.zeros(3), np.zeros(3)
    steps = np.array([*(by * tops), by * 1.25])
    for step, found in enumerate(seen, 1):
        shares = np.exp(u) / np.exp(u).sum()
        here = np.array([*(shares * tops), scale])
        assert found == pytest.approx(here.tolist(), abs=1e-9), step
        signs = np.where(here + steps > [2, 1, 1.5], -1, 1)
        along = [(value(here + m) - value(here)) / m.sum() for m in np.diag(steps * signs)]
        slope = np.array([*((np.diag(shares) - np.outer(shares, shares)) @ (along[:2] * tops)), along[2]])
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        move = rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        u, scale = u + move[:2], min(1.5, max(0.25, scale + move[2]))
    assert len(seen) == 4 and seen[-1][2] == 1.5


def test_equal_sources_move_no_shares_and_the_slope_is_the_one_of_differences() -> None:
    shares = softmax(np.array([0.3, -0.2, 0.9]))
    assert through_softmax(shares, np.full(3, 1.7)) == pytest.approx(np.zeros(3), abs=1e-15)
    along, u, step = np.array([1.0, -2.0, 0.5]), np.array([0.3, -0.2, 0.9]), 1e-6
    numeric = [
        (softmax(u + step * e) @ along - softmax(u - step * e) @ along) / (2 * step) for e in np.eye(3)
    ]
    assert through_softmax(shares, along) == pytest.approx(numeric, abs=1e-8)
