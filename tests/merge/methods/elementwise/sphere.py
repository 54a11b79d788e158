"""Means and arcs on the sphere once more, on whole vectors in float64 numpy, from the equations alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit(vector: Array) -> Array:
    """The direction."""
    return vector / np.linalg.norm(vector)


def arc(a: Array, b: Array, t: float) -> Array:
    """SLERP of the vectors as they are, with the angle from an arctangent."""
    along = np.vdot(unit(a), unit(b))
    angle = np.arctan2(np.linalg.norm(unit(b) - along * unit(a)), along)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def logarithm(mean: Array, point: Array) -> Array:
    """The tangent at ``mean`` that leads to ``point``, both of length 1."""
    along = float(np.vdot(mean, point))
    off = point - along * mean
    size = np.linalg.norm(off)
    return np.zeros_like(off) if size == 0 else np.arctan2(size, along) * off / size


def mean_direction(vectors: Sequence[Array], weights: Sequence[float], steps: int = 500) -> Array:
    """Karcher's iteration on whole vectors."""
    shares = np.asarray(weights) / np.sum(weights)
    points = [unit(vector) for vector in vectors]
    mean = unit(sum(share * point for share, point in zip(shares, points, strict=True)))
    for _ in range(steps):
        step = sum(share * logarithm(mean, point) for share, point in zip(shares, points, strict=True))
        size = np.linalg.norm(step)
        if size > 0:
            mean = unit(np.cos(size) * mean + np.sin(size) * step / size)
    return mean


def mean_length(vectors: Sequence[Array], weights: Sequence[float]) -> float:
    """The weighted mean of the lengths."""
    lengths = [np.linalg.norm(vector) for vector in vectors]
    return float(np.average(lengths, weights=weights))
