"""What every scorer makes of a task: its texts as tokens of one model, to be measured any number of times."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from scoring.model import LoadedModel
from scoring.score import Score

BATCH_TOKENS = 4096

Measuring = Generator[int, None, list[Score]]
"""Yields how many rows each forward pass has measured; returns the scores."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task in tokens. ``measure`` may be called any number of times, with whatever weights the model has
    by then; ``total`` is the number of rows it measures.
    """

    total: int
    measure: Callable[[LoadedModel], Measuring]


@dataclass(frozen=True, slots=True)
class How:
    """What is asked of a run: tokens of a batch, the window (None: the task's own), values of every item."""

    batch_tokens: int = BATCH_TOKENS
    window: int | None = None
    per_example: bool = False
