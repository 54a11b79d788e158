"""Small pieces of sign election: a strict bound for magnitudes, and a sum that leaves its terms alone."""

from collections.abc import Sequence

import torch
from torch import Tensor


def below(threshold: float) -> float:
    """The float32 just below a non-negative ``threshold``, so that ``> below(t)`` means ``>= t``; 0 is 0."""
    if threshold <= 0:
        return 0.0
    return float(torch.nextafter(torch.tensor(threshold), torch.tensor(0.0)))


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, first to last, as a new tensor."""
    if len(terms) == 1:
        return terms[0].clone()
    found = terms[0] + terms[1]
    for term in terms[2:]:
        found += term
    return found
