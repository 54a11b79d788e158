"""Pareto fronts: what is not beaten in every objective, and how much of the space of scores it covers.
Everywhere, higher is better.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
QUICK = 1e7
"""Rows to the power of objectives less two, up to which a volume is worked out exactly: a second or so."""
AT_ONCE = 64
"""Rows that all others are held against at once."""
PROBES = 1 << 17
"""Points on which a volume is counted otherwise."""


def not_dominated(values: Values) -> list[int]:
    """Rows of ``values`` (points, objectives) that no other row beats: none is at least as good everywhere
    and better somewhere. Of equal rows the first.
    """
    left = np.lexsort([-column for column in values.T[::-1]])  # best first: no later row beats an earlier
    kept: list[int] = []
    while len(left):
        first, left = left[:AT_ONCE], left[AT_ONCE:]
        first = first[~np.triu(covered(values[first], values[first]), 1).any(axis=0)]
        left = left[~covered(values[left], values[first]).any(axis=0)]
        kept += first.tolist()
    return sorted(kept)


def covered(probes: Values, values: Values) -> NDArray[np.bool_]:
    """Which probes (columns) each row of values reaches in every objective."""
    found = np.ones((len(values), len(probes)), dtype=bool)
    for told, asked in zip(values.T, probes.T, strict=True):
        found &= asked <= told[:, None]
    return found


def hypervolume(values: Values, reference: Sequence[float]) -> float:
    """The volume between a reference point and the front: what at least one row is better than.

    Exact (the WFG algorithm of While, Bradstreet and Barone, IEEE TEVC 16(1), 2012) where that is quick; of
    many rows in many objectives, for which no quick way is known, it is counted on a Sobol sequence.
    """
    above = values[np.all(values > np.asarray(reference), axis=1)] - np.asarray(reference)
    if not len(above):
        return 0.0
    rows = above[not_dominated(above)]
    quick = float(len(rows)) ** (rows.shape[1] - 2) <= QUICK
    return _volume(rows) if quick else _counted(rows)


def _volume(rows: Values) -> float:
    """What each row adds to those after it: its own box without what these cover of it."""
    if rows.shape[1] == 1:
        return float(rows.max())
    if rows.shape[1] == 2:
        rows = rows[np.argsort(-rows[:, 0], kind="stable")]
        higher = np.maximum.accumulate(rows[:, 1])
        return float(rows[:, 0] @ np.diff(higher, prepend=0.0))
    rows, total = rows[np.argsort(rows[:, -1], kind="stable")], 0.0
    for at, row in enumerate(rows):
        total += float(row.prod())
        if at + 1 < len(rows):
            covered = np.minimum(rows[at + 1 :], row)
            total -= _volume(covered[not_dominated(covered)])
    return total


def _counted(rows: Values) -> float:
    from scipy.stats import qmc

    box = rows.max(axis=0)
    probes = qmc.Sobol(rows.shape[1], seed=0).random_base2(PROBES.bit_length() - 1) * box
    open_probes = probes
    for row in rows:
        open_probes = open_probes[np.any(open_probes > row, axis=1)]
    return float(box.prod()) * (1 - len(open_probes) / PROBES)


def behind(values: Values) -> Values:
    """How far each row is behind the front: the least share of the front's range that must be added to all
    its objectives for no row to beat it in every one; 0 on the front.
    """
    front = values[not_dominated(values)]
    size = np.ptp(front, axis=0)
    ahead = (front - values[:, None]) / np.where(size > 0, size, 1.0)
    return np.asarray(ahead.min(axis=2).max(axis=1))
