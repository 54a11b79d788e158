"""Magnitudes and their bounds."""

import numpy as np

ZERO = np.float32(0)


def below(threshold: float) -> float:
    """The float32 just below a non-negative ``threshold``, so that ``> below(t)`` means ``>= t``; 0 is 0."""
    return float(np.nextafter(np.float32(threshold), ZERO)) if threshold > 0 else 0.0
