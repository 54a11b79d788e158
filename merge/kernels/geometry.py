"""Angles, arcs and means on the sphere, from inner products alone.

What lies in the span of k vectors v_i is told by k coefficients, and lengths and angles in that span by the
k x k matrix of inner products <v_i, v_j>. So nothing here ever sees a vector: plain float64 arithmetic on a
few numbers, in a fixed order. u_i = v_i / |v_i| throughout; a vector of zeros, or one that is nothing beside
another, has no direction, and no say in one.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import acos, cos, sin, sqrt

import torch
from torch import Tensor

from merge.kernels.reduce import in_order

Products = tuple[tuple[float, ...], ...]
"""Inner products of k vectors: k rows of k."""

_NO_DIRECTION = 1e-6
"""A mean of unit vectors that is shorter than this points nowhere in particular."""
_NOTHING = 2.0**-115
"""A vector that is shorter than this share of the longest cannot be brought to its length in float32."""
_STRAIGHT = 1e-4
"""Below this sine of an angle the chord replaces the arc: the same to float32 where vectors are parallel,
and the only way on where they are opposite."""
MOST_STEPS = 200
CLOSE = 1e-7
RESTLESS = 1e-2
"""Coefficients that still move by so much of themselves have found nothing."""


def lengths_of(products: Products) -> tuple[float, ...]:
    """|v_i| of every vector, 0 where it is nothing beside the longest."""
    lengths = tuple(sqrt(row[place]) for place, row in enumerate(products))
    least = _NOTHING * max(lengths)
    return tuple(length if length > least else 0.0 for length in lengths)


def cosines_of(products: Products) -> Products:
    """<u_i, u_j> in -1 to 1; 0 where either has no direction, and on the diagonal of such a one."""
    lengths = lengths_of(products)
    return tuple(
        tuple(
            max(-1.0, min(1.0, value / a / b)) if a and b else 0.0
            for value, b in zip(row, lengths, strict=True)
        )
        for row, a in zip(products, lengths, strict=True)
    )


def arc(aa: Tensor, ab: Tensor, bb: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """The factors of a and b at ``t`` on the arc from a to b, from <a, a>, <a, b>, <b, b> (float64, any one
    shape); where a and b are parallel, opposite or zero, those on the chord.
    """
    length = aa.sqrt() * bb.sqrt()
    cosine = torch.where(length > 0, ab / torch.where(length > 0, length, 1), 1).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    bent = sine > _STRAIGHT
    sine = torch.where(bent, sine, 1)
    first = torch.where(bent, torch.sin((1 - t) * angle) / sine, 1 - t)
    return first, torch.where(bent, torch.sin(t * angle) / sine, t)


@lru_cache(maxsize=256)
def spherical_mean(
    products: Products, weights: tuple[float, ...], most: int, tolerance: float
) -> tuple[float, ...]:
    """Coefficients, one a vector, of the mean direction times the weighted sum of the lengths.

    The direction starts at the normalised sum of w_i u_i and moves along the mean of the logarithms of the
    u_i seen from it (Karcher's iteration) until that is shorter than ``tolerance``, ``most`` times at most.
    Vectors that cancel each other have no mean direction: then it is the weighted sum of the vectors.
    """
    lengths = lengths_of(products)
    cosines = cosines_of(products)
    mean = _unit([w if length else 0.0 for w, length in zip(weights, lengths, strict=True)], cosines)
    for _ in range(most):
        if mean is None:
            break
        step = _step(mean, weights, cosines)
        size = _size(step, cosines)
        if size < tolerance:
            break
        along = sin(size) / size
        mean = _unit([cos(size) * m + along * s for m, s in zip(mean, step, strict=True)], cosines)
    if mean is None:
        return weights
    length = in_order([w * n for w, n in zip(weights, lengths, strict=True)])
    return tuple(length * m / n if n else 0.0 for m, n in zip(mean, lengths, strict=True))


def resting_mean(
    products: Products, weights: tuple[float, ...], most: int = MOST_STEPS, tolerance: float = CLOSE
) -> tuple[float, ...]:
    """The same where the direction comes to rest in the end, else the weights: with some of both signs it may
    wander for ever, and where it stands after ``most`` steps means nothing.
    """
    far, next_ = (spherical_mean(products, weights, MOST_STEPS + more, CLOSE) for more in (0, 1))
    moved = max(abs(one - other) for one, other in zip(far, next_, strict=True))
    if moved > RESTLESS * max(map(abs, far)):
        return weights
    return spherical_mean(products, weights, most, tolerance)


def _step(mean: Sequence[float], weights: Sequence[float], cosines: Products) -> list[float]:
    """The weighted mean of the tangents at ``mean`` that lead to each u_i, as coefficients of the u_i."""
    dots = [in_order([c * m for c, m in zip(row, mean, strict=True)]) for row in cosines]
    shares = [w if cosines[at][at] else 0.0 for at, w in enumerate(weights)]
    total = in_order(shares) or 1.0
    pulls = [w / total * _stretch(max(-1.0, min(1.0, dot))) for w, dot in zip(shares, dots, strict=True)]
    back = in_order([pull * dot for pull, dot in zip(pulls, dots, strict=True)])
    return [pull - back * m for pull, m in zip(pulls, mean, strict=True)]


def _stretch(cosine: float) -> float:
    """angle / sin(angle); 0 for the opposite point, to which no direction leads."""
    angle = acos(cosine)
    if sin(angle) < _NO_DIRECTION:
        return 1.0 if cosine > 0 else 0.0
    return angle / sin(angle)


def _size(coefficients: Sequence[float], cosines: Products) -> float:
    """Length of the vector with these coefficients of the u_i."""
    squares = [
        a * in_order([c * b for c, b in zip(row, coefficients, strict=True)])
        for a, row in zip(coefficients, cosines, strict=True)
    ]
    return sqrt(max(in_order(squares), 0.0))


def _unit(coefficients: Sequence[float], cosines: Products) -> list[float] | None:
    """The same direction with length 1, or ``None`` where there is none."""
    size = _size(coefficients, cosines)
    largest = max(map(abs, coefficients))
    return [value / size for value in coefficients] if size > _NO_DIRECTION * largest else None
