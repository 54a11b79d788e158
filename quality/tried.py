"""What came of a method on a bench, and how sure the numbers are.

Errors are over test items: of every seed each item's share in the number, and of a difference between two
models the difference on that very item. Seeds lie apart besides, which is told as a range.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, variance

from quality.bench import Scores
from quality.candidates import Steps

Items = Mapping[str, Sequence[float]]
Slopes = Mapping[str, float]
"""How much a number moves with each task's score."""
Estimate = tuple[float, float]
"""A value and its standard error."""


@dataclass(frozen=True)
class Tried:
    """A method on a bench: the coefficient that was chosen, and per seed the headline, how it moves with each
    task, the scores, what single items gave, and the costs.

    ``why_not`` says why it was not run, or how it failed; ``validation`` are the headlines of the
    coefficients that were looked at; ``zero`` is what single items gave the base, where the headline is told
    from the base on; ``variant`` tells what was not at its default on purpose.
    """

    name: str
    steps: Steps = ()
    setting: str | None = None
    value: float | None = None
    headlines: tuple[float, ...] = ()
    slopes: tuple[Slopes, ...] = ()
    scores: tuple[Scores, ...] = ()
    items: tuple[Items, ...] = ()
    costs: tuple[Mapping[str, float], ...] = ()
    why_not: str | None = None
    validation: Mapping[float, float] = field(default_factory=dict)
    zero: tuple[Items, ...] = ()
    variant: str = ""

    @property
    def label(self) -> str:
        """Its name, with what is not at its default."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def headline(self) -> Estimate:
        """The mean over seeds."""
        return mean(self.headlines), item_error(self.slopes, self.items, self.zero)

    def over(self, other: "Tried") -> Estimate:
        """How much better its headline is than another's."""
        value = mean(self.headlines) - mean(other.headlines)
        return value, item_error(self.slopes, self.items, other.items)

    def score_of(self, task: str) -> Estimate:
        """The score on one task, mean over seeds."""
        slopes = [{task: 1.0}] * len(self.items)
        return mean(scores[task] for scores in self.scores), item_error(slopes, self.items)

    def score_over(self, other: "Tried", task: str) -> Estimate:
        """How much better its score on one task is than another's."""
        slopes = [{task: 1.0}] * len(self.items)
        return self.score_of(task)[0] - other.score_of(task)[0], item_error(slopes, self.items, other.items)


def item_error(slopes: Sequence[Slopes], one: Sequence[Items], other: Sequence[Items] = ()) -> float:
    """Standard error, over items, of the mean over seeds of a number that moves with tasks' means as
    ``slopes`` say; with ``other``, of the difference of two such numbers on the same items.

    >>> item_error([{"t": 2.0}], [{"t": [1.0, 3.0]}])
    2.0
    """
    total = 0.0
    for seed, slope in enumerate(slopes):
        for task, factor in slope.items():
            values = list(one[seed][task])
            if other:
                values = [a - b for a, b in zip(values, other[seed][task], strict=True)]
            total += factor**2 * variance(values) / len(values) if len(values) > 1 else math.nan
    return math.sqrt(total) / max(1, len(slopes))


def seen(difference: Estimate) -> bool:
    """Whether a difference is more than two of its standard errors."""
    value, error = difference
    return math.isfinite(error) and abs(value) > 2 * error


def signed(difference: Estimate, digits: int) -> str:
    """A difference in words; in bold where it is seen."""
    text = f"{difference[0]:+.{digits}f} ± {difference[1]:.{digits}f}"
    return f"**{text}**" if seen(difference) else text
