"""What a bench is: for every seed a base and its experts, and a way to score any model of their shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from quality.pouring import Weights
from scoring.score import Score

Split = Literal["validation", "test"]
Scores = Mapping[str, float]
"""One number a task; larger is better, always."""


@dataclass(frozen=True)
class Scored:
    """A model's scores, and what every single item gave, in the same unit, in an order that never changes."""

    scores: Scores
    items: Mapping[str, Sequence[float]]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"scores": dict(self.scores), "items": {task: list(each) for task, each in self.items.items()}}


@dataclass(frozen=True)
class Family:
    """The models of one seed: the base, the expert of every task, and texts for each to be measured on.

    ``texts`` are JSONL files by task, or folders of pixel arrays, with one of ``base`` where the base is to
    be measured on its own.
    """

    base: Path
    experts: Mapping[str, Path]
    texts: Mapping[str, Path]

    @property
    def folders(self) -> dict[str, Path]:
        """Every model by name, the base as ``base``."""
        return {"base": self.base, **self.experts}


class Bench(Protocol):
    """A bench; its models are made at first use and kept in its folder."""

    name: str
    title: str
    about: str
    """One sentence, for the page."""
    unit: str
    """What the headline number is."""
    accuracy: bool
    """Whether tasks are scored by accuracy; otherwise the headline is the gain kept."""
    seed_varies: str
    tokens: tuple[int, int]
    """Blocks and tokens a block that statistics are measured on."""
    folder: Path
    items: Any
    """A dataclass: how many items are scored."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The experts' tasks."""

    @property
    def also(self) -> tuple[str, ...]:
        """What is scored beside the experts' tasks: the base's own ability."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Which packages models and texts come from."""

    def family(self, seed: int) -> Family:
        """The models of one seed, trained now where they are not there."""

    def score(self, model: Path, split: Split, seed: int) -> Scored:
        """Scores of a model on one split's items; every seed has test items of its own."""


class Held(Bench, Protocol):
    """A bench that scores weights in memory too: what a search makes is never written."""

    def score(self, model: Weights, split: Split, seed: int, tasks: Sequence[str] = ()) -> Scored:
        """As of any bench; with ``tasks``, on these alone."""


def headline(bench: Bench, scores: Scores, base: Scores, experts: Scores, tasks: Sequence[str] = ()) -> float:
    """The one number by which models are ranked: accuracies are averaged over the experts' tasks (or some of
    them), of other scores the share of each expert's gain over the base, in per cent, that a model keeps on
    its task.
    """
    slopes = slopes_of(bench, base, experts, tasks)
    zero = dict.fromkeys(slopes, 0.0) if bench.accuracy else base
    return sum(slope * (scores[task] - zero[task]) for task, slope in slopes.items())


def slopes_of(bench: Bench, base: Scores, experts: Scores, tasks: Sequence[str] = ()) -> dict[str, float]:
    """How much the headline moves with each task's score."""
    wanted = tasks or bench.tasks
    if bench.accuracy:
        return dict.fromkeys(wanted, 1 / len(wanted))
    return {task: 100 / (experts[task] - base[task]) / len(wanted) for task in wanted}


def from_scorer(scores: Sequence[Score]) -> Scored:
    """What the scorer said: accuracies in per cent, bits per byte with the sign turned; perplexities are
    left out.
    """
    wanted = [each for each in scores if each.metric in ("accuracy", "bits_per_byte")]
    factors = {each.task: 100.0 if each.metric == "accuracy" else -1.0 for each in wanted}
    return Scored(
        {each.task: factors[each.task] * each.value for each in wanted},
        {each.task: [factors[each.task] * v for v in each.per_example or ()] for each in wanted},
    )
