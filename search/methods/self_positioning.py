"""Self Positioning (arXiv:2410.15035): shares of the sources on a simplex and one common scale, by gradient
steps (Adam) on a small probe set. The constants are ours: no code was published.
"""

import numpy as np

from search.settings import SelfPositioningSettings
from search.space import Point, Space
from search.surrogate import Array
from search.trial import Ask, Found, Search, Task

BETAS = (0.9, 0.999)
TINY = 1e-8


def search(space: Space, p: SelfPositioningSettings, task: Task) -> Search:
    """Weights are softmax(u) times the dimensions' upper ends, the scale is free within its bounds. Adam
    climbs the objective; its slopes are differences between candidates that are scored on the same examples.
    """
    names = [name for name in space.dimensions if name != p.scale]
    tops = np.array([space.dimensions[name].high for name in names], dtype=float)
    free = names + ([p.scale] if p.scale else [])
    u, scale = np.zeros(len(names)), _scale(space, p)
    first, second = np.zeros(len(free)), np.zeros(len(free))
    for step in range(1, min(p.steps, task.evaluations // (len(free) + 1)) + 1):
        shares = softmax(u)
        here = _point(space, p, names, shares * tops, scale)
        moves = [_moved(space, here, name, p.difference) for name in free]
        told = yield [Ask(here), *(Ask(point) for point, _ in moves)]
        values = [task.value(each) for each in told]
        if not np.isfinite(values).all():
            break
        along = np.array([(v - values[0]) / by for v, (_, by) in zip(values[1:], moves, strict=True)])
        slope = np.append(through_softmax(shares, along[: len(names)] * tops), along[len(names) :])
        first = BETAS[0] * first + (1 - BETAS[0]) * slope
        second = BETAS[1] * second + (1 - BETAS[1]) * slope**2
        move = p.rate * (first / (1 - BETAS[0] ** step)) / (np.sqrt(second / (1 - BETAS[1] ** step)) + TINY)
        u = u + move[: len(names)]
        scale = _bounded(space, p, scale + float(move[-1]))
    return Found(notes={"shares": softmax(u).tolist()})


def _moved(space: Space, point: Point, name: str, share: float) -> tuple[Point, float]:
    """The point a little further along one dimension, inwards at its end; and by how much."""
    dimension, value = space.dimensions[name], float(point[name])
    assert dimension.low is not None and dimension.high is not None
    by = share * (dimension.high - dimension.low)
    by = by if value + by <= dimension.high else -by
    return {**point, name: value + by}, by


def softmax(u: Array) -> Array:
    """Shares that add up to one."""
    powers = np.exp(u - u.max())
    return np.asarray(powers / powers.sum())


def through_softmax(shares: Array, along: Array) -> Array:
    """The gradient of u from that of the shares: w_i (g_i - sum_k w_k g_k)."""
    return np.asarray(shares * (along - shares @ along))


def _scale(space: Space, p: SelfPositioningSettings) -> float:
    return float(space.dimensions[p.scale].first) if p.scale else 1.0


def _bounded(space: Space, p: SelfPositioningSettings, scale: float) -> float:
    if not p.scale:
        return 1.0
    dimension = space.dimensions[p.scale]
    assert dimension.low is not None and dimension.high is not None
    return min(dimension.high, max(dimension.low, scale))


def _point(space: Space, p: SelfPositioningSettings, names: list[str], weights: Array, scale: float) -> Point:
    made = dict(zip(names, weights.tolist(), strict=True)) | ({p.scale: scale} if p.scale else {})
    return {name: made[name] for name in space.dimensions}
