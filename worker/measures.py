"""Puts a model folder before the scorers, with the zero-shot heads that it is to use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from scoring.errors import ModelUnusable
from scoring.harness.run import run_harness
from scoring.harness.task import HarnessTask
from scoring.runner import OnProgress, base_heads, score_model
from scoring.score import Score
from scoring.tasks import Task, ZeroShotTask


class Model(Protocol):
    """A model folder and its digest."""

    @property
    def folder(self) -> Path: ...
    @property
    def digest(self) -> str: ...


@dataclass
class Heads:
    """Zero-shot heads that one model makes for all; ``model`` is None where each makes its own."""

    model: Model | None
    device: str
    _made: dict[str, Tensor] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """What identifies the model that makes them."""
        return None if self.model is None else self.model.digest

    def of(self, tasks: Sequence[Task]) -> dict[str, Tensor]:
        """The heads of those tasks that take the model's, by task name."""
        asked = [each for each in tasks if isinstance(each, ZeroShotTask) and each.settings.head == "base"]
        lacking = [each for each in asked if each.name not in self._made]
        if self.model is None and asked:
            message = f"set {asked[0].name!r} takes its head from the base, and there is no whole base here"
            raise ModelUnusable("no_base", message)
        if self.model is not None:
            self._made |= base_heads(self.model.folder, lacking, device=self.device)
        return {each.name: self._made[each.name] for each in asked if each.name in self._made}


def measure(
    folder: Path,
    tasks: Sequence[Task],
    heads: Heads,
    *,
    device: str,
    hub_endpoint: str,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> list[Score]:
    """Scores of one model with the values of every item; raises what the scorers raise."""
    own = [each for each in tasks if not isinstance(each, HarnessTask)]
    others = [each for each in tasks if isinstance(each, HarnessTask)]
    scores: list[Score] = []
    if own:
        scores += score_model(
            folder,
            own,
            device=device,
            per_example=True,
            heads=heads.of(own),
            on_progress=on_progress,
            should_stop=should_stop,
        )
    if others:
        scores += run_harness(
            folder, others, device=device, hub_endpoint=hub_endpoint, should_stop=should_stop
        )
    return scores
