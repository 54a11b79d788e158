"""Which point of a front suits a preference, and why. Loads without numpy: fronts are asked where searches
are ordered.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from search.errors import SearchInvalid

Among = Literal["measured", "predicted"]


@dataclass(frozen=True)
class FrontPoint:
    """A point of a front: measured, as a trial of this ``number``, or predicted (``None``). ``place`` is
    where it stands in the front, the measured points first. ``values``: one an objective, higher is better.
    """

    place: int
    number: int | None
    point: Mapping[str, Any]
    values: tuple[float, ...]

    @property
    def kind(self) -> Among:
        """Whether its values were measured, or are what a model of the scores says."""
        return "predicted" if self.number is None else "measured"


@dataclass(frozen=True)
class Chosen:
    """The point that suits a preference. ``scaled``: where it stands in each objective among the points that
    were asked, from 0, the worst of them, to 1, the best; ``score`` is the mean of that by the preference.
    """

    at: FrontPoint
    among: Among
    preference: tuple[float, ...]
    scaled: tuple[float, ...]
    score: float
    why: str


def points_of(front: Mapping[str, Any]) -> list[FrontPoint]:
    """The points of a front that is plain data, ``measured`` before ``predicted``."""
    every = [*front["measured"], *front["predicted"]]
    return [
        FrontPoint(place, each.get("number"), each["point"], tuple(map(float, each["values"])))
        for place, each in enumerate(every)
    ]


def names_of(objectives: Iterable[Mapping[str, Any]]) -> list[str]:
    """Objectives in words: set, metric and member."""
    return [" ".join(filter(None, map(each.get, ("set", "metric", "member")))) for each in objectives]


def check_preference(preference: Sequence[float], names: Sequence[str]) -> None:
    """Raises ``SearchInvalid`` unless it says how much each objective of these names counts."""
    if len(preference) != len(names):
        raise SearchInvalid(
            f"preference needs one number an objective, {len(names)} here ({', '.join(names)}); "
            f"it has {len(preference)}",
            "/preference",
        )
    wrong = next((each for each in preference if not (math.isfinite(each) and each >= 0)), None)
    if wrong is not None:
        raise SearchInvalid(f"preference: {wrong:g} is no say; write numbers from 0 up", "/preference")
    if not any(preference):
        raise SearchInvalid("preference needs one number above 0", "/preference")


def choose(
    points: Iterable[FrontPoint],
    preference: Sequence[float],
    names: Sequence[str],
    among: Among = "measured",
) -> Chosen:
    """The measured, or the predicted, point that suits a preference. Raises ``SearchInvalid`` for a
    preference that says nothing, and where there are no such points.
    """
    check_preference(preference, names)
    asked = [each for each in points if each.kind == among]
    if not asked:
        said = "this front has no predicted points: only the method map predicts any"
        raise SearchInvalid(said if among == "predicted" else "this front has no measured points", "/among")
    values = [each.values for each in asked]
    row = suited(values, preference)
    placed = scaled(values)[row]
    score = _mean(placed, preference)
    parts = ", ".join(f"{at:.3g} in {name}" for at, name in zip(placed, names, strict=True))
    say = ":".join(f"{each:g}" for each in preference)
    why = (
        f"Of {len(asked)} {among} points it has the largest mean by the say {say} of the objectives, "
        f"{score:.3g}, each scaled from 0, the worst of these points, to 1, the best: {parts}."
    )
    return Chosen(asked[row], among, tuple(preference), tuple(placed), score, why)


def scaled(values: Sequence[Sequence[float]]) -> list[list[float]]:
    """Every objective of rows of values scaled to its range on these rows; 0 where all are alike."""
    ends = [(min(column), max(column)) for column in zip(*values, strict=True)]
    return [
        [
            float((each - low) / (high - low)) if high > low else 0.0
            for each, (low, high) in zip(row, ends, strict=True)
        ]
        for row in values
    ]


def suited(values: Sequence[Sequence[float]], preference: Sequence[float]) -> int:
    """The row with the largest preference-weighted mean, every objective scaled to its range on these rows;
    of equal ones the first.
    """
    means = [_mean(row, preference) for row in scaled(values)]
    return means.index(max(means))


def _mean(row: Sequence[float], preference: Sequence[float]) -> float:
    most = max(preference)  # says may be as large as numbers go
    says = [each / most for each in preference]
    return sum(say * value for say, value in zip(says, row, strict=True)) / sum(says)
