"""What a method on the factors of LoRA adapters is handed, and what it gives back: changes of low rank, as
products that nobody has multiplied out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.contract.groups import Site


@dataclass(frozen=True)
class Factors:
    """The change left (m, r) times right (r, n) of a tensor that is stored as (m, n), scale in it, float64.

    ``lost`` is the Frobenius norm of what was cut away on purpose when it was made.
    """

    left: Tensor
    right: Tensor
    lost: float = 0.0

    @property
    def rank(self) -> int:
        """The number r of products that are added up; 0 for no change."""
        return self.right.shape[0]

    def times(self, factor: float) -> "Factors":
        """The change times a number."""
        return self if factor == 1 else Factors(self.left * factor, self.right, self.lost * abs(factor))


@dataclass(frozen=True)
class FactorGroup:
    """One tensor's change in every adapter, rank 0 in those that leave it alone; nothing in it may be written
    to.
    """

    site: Site
    factors: Sequence[Factors]
    weights: tuple[float, ...]

    @property
    def weighted(self) -> list[Factors]:
        """Every change times its source's weight."""
        return [each.times(weight) for each, weight in zip(self.factors, self.weights, strict=True)]

    @property
    def most(self) -> int:
        """The largest rank of any source."""
        return max((each.rank for each in self.factors), default=0)

    def nothing(self) -> Factors:
        """No change."""
        return no_change(self.site.shape)


def no_change(shape: Sequence[int]) -> Factors:
    """The factors, of rank 0, of a tensor that stays as it is."""
    rows, columns = shape if len(shape) == 2 else (0, 0)
    return Factors(torch.zeros(rows, 0).double(), torch.zeros(0, columns).double())


def joined(parts: Sequence[Factors]) -> Factors:
    """The sum of the changes: their factors side by side, never one's left with another's right."""
    lefts, rights = [part.left for part in parts], [part.right for part in parts]
    return Factors(torch.cat(lefts, dim=1), torch.cat(rights))
