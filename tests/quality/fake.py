"""A bench without models of weight: checkpoints of a few numbers, scored by how near they are to a target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from quality.bench import Family, Measure, Scored, Split, right
from quality.pouring import Weights, tensors_of
from tests.tiny import llama


@dataclass(frozen=True)
class Items:
    """Nothing is drawn."""

    test: int = 1


class FakeBench:
    """Three Llamas of a few thousand weights; ``scored`` are the folders that were asked about."""

    name = "a"
    title = "A: fake"
    about = "Fake."
    unit = "points"
    measure: Measure = "accuracy"
    adapters = False
    seed_varies = "nothing"
    tasks = ("one", "two")
    also = ("own",)
    tokens = (4, 16)
    packages = ("none==1",)
    items = Items()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scored: list[str] = []
        self.folders: Mapping[str, Path] = {
            name: llama(folder / name, expert=expert) for expert, name in enumerate(("base", "one", "two"))
        }

    def answering(self) -> "FakeBench":
        """The same, scored by likelihood, with accuracies beside it."""
        self.measure, self.unit = "likelihood", "log2"
        return self

    def family(self, seed: int) -> Family:
        experts = {task: self.folders[task] for task in self.tasks}
        return Family(self.folders["base"], experts, {})

    def score(self, model: Weights, split: Split, seed: int, tasks: Sequence[str] = ()) -> Scored:
        name = model.name.partition("-")[0] if isinstance(model, Path) else "memory"
        self.scored.append(f"{name} {split} {seed}")
        own, near = dict(tensors_of(model)), {}
        for task, target in (("one", "one"), ("two", "two"), ("own", "base")):
            wanted = load_file(self.folders[target] / "model.safetensors")
            far = sum(float((own[key].float() - wanted[key].float()).abs().sum()) for key in own)
            if not tasks or task in tasks:
                near[task] = 100 - far / 1000 - seed
        if self.measure == "likelihood":
            near = {task: value / 100 - 1 for task, value in near.items()}
            near |= {right(task): 50.0 + 50 * near[task] for task in self.tasks if task in near}
        return Scored(near, {task: [value - 1, value + 1] for task, value in near.items()})
