"""What the report adds up over entries, as one float64 term each: numbers and truths alike."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Given:
    """What is known of every entry: of the base (where there is one), of the sources, of the result; of each
    task vector after the preparing steps (where there are any), and of the result before the adjusting ones
    (likewise).
    """

    based: bool
    sources: int
    prepared: bool
    combined: bool

    @property
    def inputs(self) -> int:
        """How many values an entry has."""
        return self.based + self.sources * (1 + self.prepared) + 1 + self.combined

    def terms(self, values: Sequence[Tensor]) -> list[Tensor]:
        """In the order of ``merge.running.survey.summary.Measured.sums``."""
        left = iter(values)
        base = next(left) if self.based else None
        sources = [next(left) for _ in range(self.sources)]
        result = next(left)
        center = result if base is None else base
        deltas = [source - center for source in sources]
        moved = result - center
        kept = [next(left) for _ in sources] if self.prepared else deltas
        length = moved.double().square()
        before = (next(left) - center).double().square() if self.combined else length
        wide = [delta.double() for delta in deltas]
        pairs = [(i, j) for i in range(len(wide)) for j in range(i, len(wide))]
        products = [wide[i] * wide[j] for i, j in pairs]
        squares = [value.double().square() for value in kept]
        return [*products, length, *_counts(deltas, moved, kept), before, *squares]


def _counts(deltas: Sequence[Tensor], moved: Tensor, kept: Sequence[Tensor]) -> list[Tensor]:
    signs = [delta.sign() for delta in deltas]
    towards = moved.sign()
    highest = functools.reduce(torch.maximum, signs)
    lowest = functools.reduce(torch.minimum, signs)
    truths = [(highest > 0) & (lowest < 0), moved != 0]
    for sign, left in zip(signs, kept, strict=True):
        truths += [sign != 0, left != 0, (sign == towards) & (sign != 0)]
    return [truth.double() for truth in truths]
