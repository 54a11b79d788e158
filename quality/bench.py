"""What a bench is: for every seed a base and its experts, and a way to score any model of their shape."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from merge.checkpoint.index import ModelIndex, attach, index_adapter_folder, index_folder
from merge.recipe.stages import ADAPTER
from quality.pouring import Weights
from scoring.score import Score

Split = Literal["validation", "test"]
Measure = Literal["accuracy", "likelihood", "gain"]
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
    be measured on its own. With ``adapters`` the experts are LoRA adapters over the base.
    """

    base: Path
    experts: Mapping[str, Path]
    texts: Mapping[str, Path]
    adapters: bool = False

    @property
    def folders(self) -> dict[str, Path]:
        """Every model by name, the base as ``base``; of adapters, what they add to it."""
        return {"base": self.base, **self.experts}

    def source(self, task: str) -> dict[str, str]:
        """An expert in the words of a recipe."""
        if self.adapters:
            return {"id": task, "model": str(self.base), "adapter": str(self.experts[task])}
        return {"id": task, "model": str(self.experts[task])}

    def read(self, *, base: bool = True) -> dict[str, Path]:
        """The folders that a merge of all experts reads, by the names of a plan; ``base`` says whether the
        base is one of its models.
        """
        models = {"base": self.base} if base else {}
        if not self.adapters:
            return {**models, **self.experts}
        over = dict.fromkeys(self.experts, self.base)
        return {**models, **over, **{task + ADAPTER: folder for task, folder in self.experts.items()}}

    def indices(self, *, base: bool = True) -> dict[str, ModelIndex]:
        """What is in each model of such a merge, adapters attached."""
        folders = self.read(base=base)
        found = {key: index_folder(at, key) for key, at in folders.items() if not key.endswith(ADAPTER)}
        for task, folder in self.experts.items() if self.adapters else ():
            found[task] = attach(found[task], index_adapter_folder(folder, task))
        return found


class Bench(Protocol):
    """A bench; its models are made at first use and kept in its folder."""

    name: str
    title: str
    about: str
    """One sentence, for the page."""
    unit: str
    """What the headline number is."""
    measure: Measure
    """What the headline is: the mean of the tasks' accuracies, of the likelihoods of their right answers, or
    the gain kept.
    """
    adapters: bool
    """Whether the experts are LoRA adapters over the base."""
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
    """The one number by which models are ranked: accuracies and likelihoods are averaged over the experts'
    tasks (or some of them), of other scores the share of each expert's gain over the base, in per cent, that
    a model keeps on its task.
    """
    slopes = slopes_of(bench, base, experts, tasks)
    zero = base if bench.measure == "gain" else dict.fromkeys(slopes, 0.0)
    return sum(slope * (scores[task] - zero[task]) for task, slope in slopes.items())


def slopes_of(bench: Bench, base: Scores, experts: Scores, tasks: Sequence[str] = ()) -> dict[str, float]:
    """How much the headline moves with each task's score."""
    wanted = tasks or bench.tasks
    if bench.measure != "gain":
        return dict.fromkeys(wanted, 1 / len(wanted))
    return {task: 100 / (experts[task] - base[task]) / len(wanted) for task in wanted}


def from_scorer(scores: Sequence[Score], measure: Measure = "accuracy") -> Scored:
    """What the scorer said: accuracies in per cent, bits per byte with the sign turned; perplexities are
    left out. With ``likelihood`` a question counts by log2 of its right answer's share in the likelihood of
    all, and accuracies stand beside that.
    """
    told = {}
    for each in scores:
        if each.metric == "accuracy":
            name = right(each.task) if measure == "likelihood" else each.task
            told[name] = (100.0, each)
        elif each.metric == "bits_per_byte":
            told[each.task] = (-1.0, each)
        elif each.metric == "log_loss" and measure == "likelihood":
            told[each.task] = (-1.0 / math.log(2), each)
    return Scored(
        {name: factor * each.value for name, (factor, each) in told.items()},
        {name: [factor * v for v in each.per_example or ()] for name, (factor, each) in told.items()},
    )


def right(task: str) -> str:
    """Where the accuracy on a task is told, beside its likelihood."""
    return f"{task}: right"
