"""exp and tanh from sums and products alone, in float64: the same bits on every processor, and nothing that a
compiled loop could not do. Libraries' own differ between processors and vector widths.
"""

from math import ceil, factorial, log2

from torch import Tensor

_TERMS = 12
_REACH = 0.5
"""Within it the series is exact to 1e-12, relative to its value."""
_SATURATED = 20.0
"""From here on tanh is 1 in float64."""


def decay(values: Tensor, most: float) -> Tensor:
    """exp(-x) of float64 entries between 0 and ``most``, as a new tensor; never negative, never rising."""
    halvings = _halvings(most)
    found = _series(values * -(2.0**-halvings)).add_(1)
    for _ in range(halvings):
        found.mul_(found)
    return found


def tanh(values: Tensor) -> Tensor:
    """tanh of float64 entries, as a new tensor; exact to 1e-12, relative to its value, however small."""
    halvings = _halvings(2 * _SATURATED)
    found = _series(values.abs().clamp_(max=_SATURATED).mul_(2.0 ** (1 - halvings)))
    for _ in range(halvings):
        found = found * (found + 2)
    return (found / (found + 2)).mul_(values.sign())


def _halvings(most: float) -> int:
    return max(0, ceil(log2(most / _REACH))) if most > 0 else 0


def _series(small: Tensor) -> Tensor:
    """exp(x) - 1 for |x| of at most ``_REACH``."""
    found = small * (1 / factorial(_TERMS))
    for place in range(_TERMS - 1, 0, -1):
        found.add_(1 / factorial(place)).mul_(small)
    return found
