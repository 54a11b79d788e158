"""Gives what is left of a tensor, after some of its entries were dropped, the norm that all of it had."""

from collections.abc import Sequence

from torch import Tensor


def powers(before: Tensor, after: Tensor, norm: str) -> Sequence[Tensor]:
    """What is summed over the tensor before and after the drop: magnitudes (``l1``), squares (``l2``)."""
    if norm == "l1":
        return before.abs(), after.abs()
    return before.double().square(), after.double().square()


def factor(sums: Sequence[float], norm: str) -> float:
    """What to multiply the rest with, from the sums of both ``powers``; 0 where nothing is left."""
    before, after = sums
    ratio = before / after if after else 0.0
    return ratio if norm == "l1" else ratio**0.5
