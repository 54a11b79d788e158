"""The cut of bench B that tests run: the demo family as it is shipped, nothing fetched, nothing trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from demo.families import HERE
from quality.bench import Family, Measure, Scored, Split, from_scorer
from quality.cache import keyed_folder
from quality.pouring import Weights, pour
from scoring.model import LoadedModel, load
from scoring.runner import score_loaded
from scoring.tasks import PerplexityTask, parse_task

SPLITS = {"validation": "validation", "test": "."}


@dataclass(frozen=True)
class Items:
    """How many texts of a domain are scored, and the tokens a model sees at once."""

    validation: int = 12
    test: int = 24
    window: int = 128


class ShippedBench:
    """Two experts of the demo's base; the score is bits per byte, turned round."""

    name = "shipped"
    title = "Shipped: two experts of the demo's base (0.86 M parameters)"
    about = "Python source and dictionary entries; prose is what the base itself does best."
    unit = "gain kept, %"
    measure: Measure = "gain"
    adapters = False
    seed_varies = "nothing: the experts are shipped"
    tasks = ("python", "dictionary")
    also = ("prose",)
    tokens = (16, 128)
    packages: tuple[str, ...] = ()

    def __init__(self, root: Path, items: Items | None = None, say: Callable[[str], None] = print) -> None:
        self.items, self.say = items or Items(), say
        self.home = HERE / "family"
        self.folder = keyed_folder(root, self.name, {"made": 1})

    def family(self, seed: int) -> Family:  # noqa: ARG002
        texts = {name: self.home / f"texts/validation/{name}.jsonl" for name in self.tasks}
        texts["base"] = self.home / "texts/validation/prose.jsonl"
        return Family(self.home / "base", {name: self.home / name for name in self.tasks}, texts)

    def score(
        self,
        model: Weights,
        split: Split,
        seed: int,  # noqa: ARG002
        tasks: Sequence[str] = (),
    ) -> Scored:
        pour(self._loaded.model, model)
        wanted = [self._set(name, split) for name in tasks or (*self.tasks, *self.also)]
        return from_scorer(score_loaded(self._loaded, wanted, window=self.items.window, per_example=True))

    def _set(self, name: str, split: Split) -> PerplexityTask:
        file = self.home / "texts" / SPLITS[split] / f"{name}.jsonl"
        limit = getattr(self.items, split)
        task: Any = parse_task(name, "perplexity", file.read_bytes(), file=file.name, limit=limit)
        return PerplexityTask(name, task.texts)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load(self.home / "base")
