"""Every method once more, in float64 numpy on whole tensors, from the formulas and nothing of the engine."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear(sources: Sequence[Array], weights: Sequence[float], normalize: bool = True) -> Array:
    """Weighted sum, divided by the sum of weights."""
    total = np.einsum("i,i...->...", np.asarray(weights, dtype=np.float64), np.stack(sources))
    return total / np.sum(weights) if normalize else total


def task_arithmetic(base: Array, sources: Sequence[Array], weights: Sequence[float], scale: float) -> Array:
    """Base plus the scaled weighted sum of differences."""
    return base + scale * np.einsum("i,i...->...", np.asarray(weights), np.stack(sources) - base)


def slerp(a: Array, b: Array, t: float) -> Array:
    """Along the arc, in an orthonormal basis of the plane of a and b."""
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    u = a / length_a
    rest = b / length_b - np.vdot(u, b / length_b) * u
    angle = np.arctan2(np.linalg.norm(rest), np.vdot(u, b / length_b))
    v = rest / np.linalg.norm(rest)
    first, second = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    ends = np.cos(angle), np.sin(angle)
    return first * length_a * u + second * length_b * (ends[0] * u + ends[1] * v)


def ties(
    base: Array,
    sources: Sequence[Array],
    weights: Sequence[float],
    density: float,
    scale: float = 1.0,
    normalize: bool = True,
) -> Array:
    """Entry by entry, with thresholds from a full sort."""
    out = base.astype(np.float64).copy().reshape(-1)
    deltas = [(source - base).reshape(-1) for source in sources]
    keep = max(1, int(np.floor(np.round(density * out.size, 9))))
    limits = [np.sort(np.abs(delta))[::-1][keep - 1] for delta in deltas]
    for place in range(out.size):
        votes = [
            (w * d[place], w) for d, w, m in zip(deltas, weights, limits, strict=True) if abs(d[place]) >= m
        ]
        sign = np.sign(sum(vote for vote, _ in votes))
        agreeing = [(vote, weight) for vote, weight in votes if vote * sign > 0]
        if agreeing:
            total = sum(vote for vote, _ in agreeing)
            out[place] += scale * (total / sum(abs(w) for _, w in agreeing) if normalize else total)
    return out.reshape(base.shape)
