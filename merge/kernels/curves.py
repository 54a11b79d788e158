"""exp and tanh from sums and products alone, in float64 or float32: the same bits on every processor, and
nothing that a compiled loop could not do. Libraries' own differ between processors and vector widths.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, factorial, inf, log2

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Kind:
    """Within ``reach`` the series of so many ``terms`` is exact to what the dtype can hold, nearly; from
    ``saturated`` on tanh is 1.
    """

    terms: int
    reach: float
    saturated: float


_KINDS = {torch.float64: _Kind(12, 0.5, 20.0), torch.float32: _Kind(7, 0.4, 9.1)}
_QUICK = _Kind(7, 0.125, inf)
"""Of float64, where nine digits do."""
_FLAT = {torch.float64: ((2.0**-3, 3),), torch.float32: ((2.0**-11, 0), (2.0**-6, 1), (2.0**-3, 3))}
"""Magnitudes within which so many powers beyond the first make tanh exact to 2e-9, or to what a float32 can
hold.
"""
_SMALL, _FEW, _MANY = 1 / 16, 6, 13
"""How many powers ``beyond`` needs for what is small, and up to 1."""
_POWERS = (1.0, -1 / 3, 2 / 15, -17 / 315)
"""tanh(x) = x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315 + ..."""
_GENTLE = Fraction(3, 4)
_BENT = {torch.float64: 10, torch.float32: 5}
"""How many powers make exp(c (x - 1)) from 0 to 1 exact to what the dtype can hold, nearly, where c is so
gentle.
"""


def decay(values: Tensor, most: float) -> Tensor:
    """exp(-x) of entries between 0 and ``most``, as a new tensor; never negative. In float64 to 1e-10
    relative to its value, in float32 to 4e-7 times (1 + ``most``).
    """
    return _exp(values, -1, most, _KINDS[values.dtype])


def power(values: Tensor, most: float) -> Tensor:
    """exp(x) of float64 entries whose magnitudes are at most ``most``, as a new tensor; to 3e-11 times (1 +
    ``most``) relative to its value.
    """
    return _exp(values, 1, most, _QUICK)


def beyond(values: Tensor, most: float) -> Tensor:
    """exp(x) - 1 - x of float64 entries whose magnitudes are at most ``most``, which is at most 1, as a new
    tensor; to 1e-9 relative to its value, however small.
    """
    powers = _FEW if most <= _SMALL else _MANY
    found = values * (1 / factorial(powers))
    for place in range(powers - 1, 1, -1):
        found.add_(1 / factorial(place)).mul_(values)
    return found.mul_(values)


def tanh(values: Tensor, most: float = inf) -> Tensor:
    """tanh of entries whose magnitudes are at most ``most``, as a new tensor; relative to its value, however
    small, exact to 1e-12 in float64 and to 2e-6 in float32; to 2e-9 and 3e-7 where ``most`` is small.
    """
    for limit, powers in _FLAT[values.dtype]:
        if most <= limit:
            return _flat(values, powers)
    kind = _KINDS[values.dtype]
    halvings = _halvings(2 * kind.saturated, kind)
    found = _series(values.abs().clamp_(max=kind.saturated).mul_(2.0 ** (1 - halvings)), kind)
    for _ in range(halvings):
        found = found * (found + 2)
    return (found / (found + 2)).mul_(values.sign())


def peak(values: Tensor, steepness: int) -> Tensor:
    """exp(``steepness`` (x - 1)) of entries between 0 and 1, as a new tensor; never negative. In float64 to
    1e-12 times (1 + ``steepness``) relative to its value, in float32 to 4e-7 times as much.
    """
    first, *rest = _bent(steepness, _BENT[values.dtype])
    found = values * first
    for factor in rest[:-1]:
        found.add_(factor).mul_(values)
    found.add_(rest[-1])
    for _ in range(_bends(steepness)):
        found.mul_(found)
    return found


def _bends(steepness: int) -> int:
    return max(0, ceil(log2(steepness / _GENTLE)))


@lru_cache(maxsize=64)
def _bent(steepness: int, powers: int) -> tuple[float, ...]:
    """Factors of the powers of x, highest first, that make exp(c (x - 1)) from 0 to 1, c being the steepness
    halved a few times: e^-h (I0(h) + 2 I1(h) T1 + ...) with h = c / 2 and the Chebyshev polynomials of
    2 x - 1. Reckoned in fractions and rounded in the end.
    """
    half = Fraction(steepness, 2 ** (_bends(steepness) + 1))
    least = sum((-half) ** at / factorial(at) for at in range(2 * powers))
    found = [Fraction(0)] * (powers + 1)
    for order, polynomial in enumerate(_chebyshev(powers + 1)):
        share = least * _bessel(order, half, powers) * (2 if order else 1)
        for place, factor in enumerate(polynomial):
            found[place] += share * factor
    return tuple(map(float, reversed(found)))


def _bessel(order: int, x: Fraction, terms: int) -> Fraction:
    """The modified Bessel function of the first kind, I."""
    series = ((x / 2) ** (2 * at + order) / (factorial(at) * factorial(at + order)) for at in range(terms))
    return sum(series, Fraction(0))


def _chebyshev(count: int) -> list[list[int]]:
    """The first polynomials of 2 x - 1, factors of the lowest power first."""
    found = [[1], [-1, 2]]
    while len(found) < count:
        before, last = [*found[-2], 0, 0], [*found[-1], 0]
        found.append([4 * b - 2 * a - c for a, b, c in zip(last, [0, *last], before, strict=False)])
    return found


def _flat(values: Tensor, powers: int) -> Tensor:
    """tanh by so many powers beyond the first."""
    if not powers:
        return values.clone()
    squares = values * values
    found = squares * _POWERS[powers]
    for power in range(powers - 1, 0, -1):
        found.add_(_POWERS[power]).mul_(squares)
    return found.add_(1).mul_(values)


def _exp(values: Tensor, sign: int, most: float, kind: _Kind) -> Tensor:
    halvings = _halvings(most, kind)
    found = _series(values * (sign * 2.0**-halvings), kind).add_(1)
    for _ in range(halvings):
        found.mul_(found)
    return found


def _halvings(most: float, kind: _Kind) -> int:
    return max(0, ceil(log2(most / kind.reach))) if most > 0 else 0


def _series(small: Tensor, kind: _Kind) -> Tensor:
    """exp(x) - 1 for |x| of at most the reach."""
    found = small * (1 / factorial(kind.terms))
    for place in range(kind.terms - 1, 0, -1):
        found.add_(1 / factorial(place)).mul_(small)
    return found
