"""exp and tanh from sums and products alone, in float64 or float32: the same bits on every processor, and
nothing that a compiled loop could not do. Libraries' own differ between processors and vector widths.
"""

from dataclasses import dataclass
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
_FLAT = 0.125
"""Within it a few powers make tanh exact to 2e-9, relative to its value."""
_SMALL, _FEW, _MANY = 1 / 16, 6, 13
"""How many powers ``beyond`` needs for what is small, and up to 1."""
_POWERS = (1 / 3, 2 / 15, 17 / 315)
"""tanh(x) = x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315 + ..."""


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
    if most <= _FLAT:
        squares = values * values
        third, fifth, seventh = _POWERS
        return (squares * -seventh).add_(fifth).mul_(squares).sub_(third).mul_(squares).add_(1).mul_(values)
    kind = _KINDS[values.dtype]
    halvings = _halvings(2 * kind.saturated, kind)
    found = _series(values.abs().clamp_(max=kind.saturated).mul_(2.0 ** (1 - halvings)), kind)
    for _ in range(halvings):
        found = found * (found + 2)
    return (found / (found + 2)).mul_(values.sign())


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
