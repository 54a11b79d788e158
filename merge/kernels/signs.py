"""Magnitudes and their bounds."""

import torch


def below(threshold: float) -> float:
    """The float32 just below a non-negative ``threshold``, so that ``> below(t)`` means ``>= t``; 0 is 0."""
    if threshold <= 0:
        return 0.0
    return float(torch.nextafter(torch.tensor(threshold), torch.tensor(0.0)))
