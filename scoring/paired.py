"""Paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 13): is one model really better?

The items of a set are drawn again with replacement, the same draws for both models, and the metric of both is
worked out anew each time. The middle 95 % of the differences are the confidence interval. The draws depend on
the set's size alone, so the same scores always give the same interval.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.score import Score, is_perplexity

RESAMPLES = 2000
RANK_RESAMPLES = 500
"""Ranking anew takes longer."""
SEED = 20_240_607
LEVEL = 0.95
AT_ONCE = 1 << 20  # indices held at a time
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """``value`` is one model's score minus another's; ``low`` and ``high`` bound its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, Any]:
        """JSON form, with ``clear``."""
        return {**asdict(self), "clear": self.is_clear}


def difference(one: Score, other: Score) -> Difference | None:
    """The difference of two models' scores on one set; None where their items cannot be paired."""
    if one.metric != other.metric or not one.per_example or not other.per_example:
        return None
    if len(one.per_example) != len(other.per_example) or len(one.per_example) < 2:
        return None
    both = zip(one.weights or (), other.weights or (), strict=False)
    if any(mine != theirs and mine and theirs for mine, theirs in both):
        return None  # windows of other texts, or other tokens
    seconds = zip(_resampled(one), _resampled(other), strict=True)
    draws = np.concatenate([first - second for first, second in seconds])
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(one.value - other.value, float(low), float(high))


def resampled_stderr(score: Score) -> float | None:
    """Standard error by the bootstrap, for a metric that is no mean; None below three items."""
    if not score.per_example or len(score.per_example) < 3:
        return None
    draws = np.concatenate(list(_resampled(score)))
    value = float(np.std(draws, ddof=1))
    return value if math.isfinite(value) else None


def _resampled(score: Score) -> Iterator[Floats]:
    """The metric of redrawn items, some draws at a time; the same draws for every score of as many items."""
    values = np.asarray(score.per_example, dtype=np.float64)
    weights = None if score.weights is None else np.asarray(score.weights, dtype=np.float64)
    rng = np.random.Generator(np.random.PCG64(SEED))
    ranked = score.metric == "spearman"
    left = RANK_RESAMPLES if ranked else RESAMPLES
    while left:
        rows = min(left, max(1, AT_ONCE // len(values)))
        drawn = rng.integers(0, len(values), size=(rows, len(values)))
        left -= rows
        if weights is None:
            yield values[drawn].mean(axis=1)
        elif ranked:
            yield np.array([_spearman(values[each], weights[each]) for each in drawn])
        else:
            yield _weighted(score.metric, values, weights, drawn)


def _weighted(metric: str, values: Floats, weights: Floats, drawn: NDArray[np.int64]) -> Floats:
    logarithms = is_perplexity(metric)
    each = np.log(values) if logarithms else values
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (each * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    found: Floats = np.exp(np.minimum(means, 700.0)) if logarithms else means
    return found


def _spearman(left: Floats, right: Floats) -> float:
    a, b = _ranks(left), _ranks(right)
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / spread if spread > 0 else 0.0


def _ranks(values: Floats) -> Floats:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends: Floats = np.cumsum(count) - (count - 1) / 2
    found: Floats = ends[place]
    return found
