"""Full quadratics fitted to scores: cheap models of what a candidate would score (MAP, arXiv:2406.07529).

q(c) = e + b.c + 1/2 c'A c, through a link so that predictions stay where scores can be. Least squares on the
linked scores; the published code fits by curve_fit from an unseeded start.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Link = Literal["identity", "sigmoid", "softplus"]
EDGE = 1e-3
"""How near to its ends a share may come before it is linked: a logit of 0 or 1 has no number."""
RIDGE = 1e-10


def features(points: Array) -> Array:
    """Columns of a quadratic for points (rows, width): squares and products, then the numbers, then one.

    Squares come halved, so that the coefficient of c_i c_j is A_ij for every pair.
    """
    width = points.shape[1]
    pairs = [
        points[:, i] * points[:, j] * (0.5 if i == j else 1.0) for i in range(width) for j in range(i, width)
    ]
    return np.column_stack([*pairs, points, np.ones(len(points))])


class Undetermined(ValueError):
    """Too few points could be scored, or in places too much alike, for a quadratic to be fitted."""


@dataclass(frozen=True)
class Surrogate:
    """A fitted quadratic. ``error`` is the root mean square, weighted as the fit, of what it says of each
    point when fitted to the others, in units of the linked score; infinite where there are no more points
    than unknowns.
    """

    coefficients: Array
    link: Link
    error: float

    @property
    def told_error(self) -> float | None:
        """The error as a result tells it, which holds finite numbers only."""
        return self.error if np.isfinite(self.error) else None

    def __call__(self, points: Array) -> Array:
        """Predicted scores of points (rows, width)."""
        return unlinked(features(points) @ self.coefficients, self.link)


def fit(points: Array, scores: Array, link: Link = "identity", weights: Array | None = None) -> Surrogate:
    """The quadratic through points (rows, width) with their scores (rows,); exact for noise-free quadratics.
    An error at a point counts by the square of its weight (rows,) > 0.

    Raises ``Undetermined`` where there are fewer points than unknowns, or they do not determine them.
    """
    x, y = features(points), linked(scores, link)
    if len(x) < x.shape[1]:
        numbers = "1 number" if points.shape[1] == 1 else f"{points.shape[1]} numbers"
        raise Undetermined(f"a quadratic in {numbers} has {x.shape[1]} unknowns; {len(x)} points")
    say = np.ones(len(x)) if weights is None else weights
    u, s, vt = np.linalg.svd(x * say[:, None], full_matrices=False)
    if s[-1] < 1e-9 * s[0]:
        raise Undetermined(
            f"{len(x)} points do not determine a quadratic with {x.shape[1]} unknowns: they lie on one"
        )
    coefficients = vt.T @ ((s / (s * s + RIDGE * s[0] * RIDGE)) * (u.T @ (y * say)))
    leverage = (u * u).sum(axis=1)
    spare = 1 - leverage
    loose = (y - x @ coefficients) / np.where(spare > 1e-9, spare, np.nan)
    error = (
        float(np.sqrt(np.average(loose**2, weights=say**2)))
        if len(x) > x.shape[1] and np.all(spare > 1e-9)
        else float("inf")
    )
    return Surrogate(coefficients, link, error)


def linked(scores: Array, link: Link) -> Array:
    """Scores on the scale on which the quadratic lives."""
    if link == "sigmoid":
        inside = np.clip(scores, EDGE, 1 - EDGE)
        return np.asarray(np.log(inside / (1 - inside)))
    if link == "softplus":  # losses come as negative numbers, for higher is better
        loss = np.maximum(-scores, EDGE)
        return np.asarray(-(loss + np.log(-np.expm1(-loss))))
    return scores


def unlinked(numbers: Array, link: Link) -> Array:
    """The inverse of ``linked``."""
    if link == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-numbers)))
    if link == "softplus":
        return np.asarray(-np.logaddexp(0.0, -numbers))
    return numbers
