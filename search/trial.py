"""A candidate that is asked for, what was measured of it, and what a method makes of all that."""

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from search.space import Point


@dataclass(frozen=True)
class Ask:
    """A candidate to score. ``examples``: the score of each example is wanted too."""

    point: Point
    examples: bool = False


@dataclass(frozen=True)
class Told:
    """What came out. ``values``: one a objective, higher is better; ``None`` if the candidate failed.

    ``share`` is the part of the examples that it was scored on: below 1 it was given up early, and its
    values are estimates. ``examples`` are the scores of each example; ``reused`` says that an earlier job
    has had the same scores, so that nothing was merged.
    """

    values: tuple[float, ...] | None
    share: float = 1.0
    error: str | None = None
    examples: tuple[float, ...] | None = None
    seconds: float = 0.0
    reused: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            key: value for key, value in self.__dict__.items() if value is not None and value is not False
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Told":
        """From ``as_dict``."""
        lists = {
            key: tuple(map(float, plain[key])) for key in ("values", "examples") if plain.get(key) is not None
        }
        return cls(**{"values": None, **plain, **lists})


def sound(told: Told) -> Told:
    """The answer; scores that are no numbers make it a failure."""
    if told.values is not None and not all(map(math.isfinite, told.values)):
        said = told.error or "a score is not a finite number"
        return replace(told, values=None, examples=None, error=said)
    return told


@dataclass(frozen=True)
class Task:
    """What a method is to do: evaluations at most, the say of each objective, a seed for its draws; of a
    front, the point that is wanted most and the scores that must be beaten.
    """

    evaluations: int
    weights: tuple[float, ...] = (1.0,)
    seed: int = 0
    preference: tuple[float, ...] | None = None
    reference: tuple[float, ...] | None = None

    def value(self, told: Told) -> float:
        """One number for all objectives, their weighted mean; a failed candidate is worse than any other."""
        if told.values is None:
            return -math.inf
        return sum(w * v for w, v in zip(self.weights, told.values, strict=True)) / sum(self.weights)


@dataclass(frozen=True)
class Predicted:
    """A point of a front as a model of the scores sees it."""

    point: Point
    values: tuple[float, ...]


@dataclass(frozen=True)
class Found:
    """What a method itself has to say at its end; the best of what was measured needs no saying.

    ``front`` are predictions, ``notes`` plain facts for the reader, such as the error of a surrogate.
    ``point`` is the method's choice where that is not simply the best candidate.
    """

    point: Point | None = None
    front: tuple[Predicted, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


Search = Generator[list[Ask], list[Told], Found]
"""A method at work: it yields candidates that may be scored side by side, and is sent what came out, in
order. The same answers give the same questions, so a recorded run can be replayed.
"""
