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


def wide_total(terms: Sequence[Tensor]) -> Tensor:
    """The same sum in float64."""
    found = terms[0].to(torch.float64, copy=True)
    for term in terms[1:]:
        found += term
    return found


def scaled(terms: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
    """Each tensor times its factor: a new tensor, or the very one where the factor is 1."""
    return [term if factor == 1 else term * factor for term, factor in zip(terms, factors, strict=True)]


def weighted_sum(terms: Sequence[Tensor], factors: Sequence[float | Tensor]) -> Tensor:
    """The sum of each tensor times its factor, as a new tensor. A factor may be a tensor of the same dtype
    that broadcasts, such as one number a row.
    """
    found = terms[0] * factors[0]
    scaled = torch.empty_like(found)
    for term, factor in zip(terms[1:], factors[1:], strict=True):
        found += torch.mul(term, factor, out=scaled)
    return found


def anchored_mean(
    terms: Sequence[Tensor], says: Sequence[float | Tensor], otherwise: Sequence[float] | None = None
) -> Tensor:
    """The mean of tensors weighted by ``says`` (numbers, or tensors of their shape), as a new tensor; by
    ``otherwise`` where those add up to zero. Reckoned from the first one, so that the mean of equal tensors
    is what they are.
    """
    if otherwise is None:
        divisor = sum(float(say) for say in says)
        return terms[0] + weighted_sum([term - terms[0] for term in terms], [say / divisor for say in says])
    whole: Tensor = total([torch.as_tensor(say) for say in says])
    empty = whole == 0
    shares = [say / torch.where(empty, torch.ones_like(whole), whole) for say in says]
    plain = anchored_mean(terms, otherwise)
    moved = weighted_sum([term - terms[0] for term in terms], shares)
    return torch.where(empty, plain, terms[0] + moved)
