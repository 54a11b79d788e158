"""Pareto fronts: what is not beaten in every objective, how much of the space of scores it covers, and which
point of it suits a preference. Everywhere, higher is better.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def not_dominated(values: Values) -> list[int]:
    """Rows of ``values`` (points, objectives) that no other row beats: none is at least as good everywhere
    and better somewhere. Of equal rows the first.
    """
    left = np.lexsort([-column for column in values.T[::-1]])  # best first: no later row beats an earlier
    kept: list[int] = []
    while len(left):
        first = left[0]
        kept.append(int(first))
        left = left[np.any(values[left] > values[first], axis=1)]
    return sorted(kept)


def hypervolume(values: Values, reference: Sequence[float]) -> float:
    """The volume between a reference point and the front: what at least one row is better than.

    Exact, by slices along the last objective (Hypervolume by Slicing Objectives).
    """
    above = values[np.all(values > np.asarray(reference), axis=1)]
    return _volume(above - np.asarray(reference)) if len(above) else 0.0


def _volume(rows: Values) -> float:
    if rows.shape[1] == 1:
        return float(rows.max())
    order = np.argsort(-rows[:, -1], kind="stable")
    rows = rows[order]
    lower = np.append(rows[1:, -1], 0.0)
    total = 0.0
    for count, depth in enumerate(rows[:, -1] - lower, start=1):
        if depth > 0:
            slab = rows[:count, :-1]
            total += float(depth) * _volume(slab[not_dominated(slab)])
    return total


def behind(values: Values) -> Values:
    """How far each row is behind the front: the least share of the front's range that must be added to all
    its objectives for no row to beat it in every one; 0 on the front.
    """
    front = values[not_dominated(values)]
    size = np.ptp(front, axis=0)
    ahead = (front - values[:, None]) / np.where(size > 0, size, 1.0)
    return np.asarray(np.maximum(ahead.min(axis=2).max(axis=1), 0.0))


def suited(values: Values, preference: Sequence[float]) -> int:
    """The row with the largest preference-weighted sum, every objective scaled to its range on these rows."""
    low, high = values.min(axis=0), values.max(axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmax(scaled @ np.asarray(preference, dtype=float)))
