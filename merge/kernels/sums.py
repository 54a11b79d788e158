"""Sums of a few tensors, first to last.

Products are rounded before they are added: a fused multiply-add (``alpha=``, ``addcmul``) rounds once, but
only on processors that have it, and so gives other bytes elsewhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, as a new tensor."""
    if len(terms) == 1:
        return terms[0].clone()
    found = terms[0] + terms[1]
    for term in terms[2:]:
        found += term
    return found


def weighted_sum(terms: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """The sum of each tensor times its factor, as a new tensor."""
    found = terms[0] * factors[0]
    scaled = torch.empty_like(found)
    for term, factor in zip(terms[1:], factors[1:], strict=True):
        found += torch.mul(term, factor, out=scaled)
    return found
