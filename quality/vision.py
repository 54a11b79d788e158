"""Bench D: a vision transformer of 0.56 million parameters trained from scratch, and an expert for each of
four sets of small pictures.

The base learns all four a little, with one linear head for each; then the heads are frozen and kept beside
the models. So the base has a score of its own, no head is ever merged, and every merge is scored with the
same heads.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTConfig, ViTModel
from transformers.utils import logging as transformers_logging

from quality.bench import Family, Measure, Scored, Split
from quality.cache import keyed_folder, made_whole
from quality.classifiers import descend
from quality.images import MAKERS, PACKAGES, SIDE, SIZES, ImageTask, image_tasks

SHAPE: Mapping[str, Any] = {
    "image_size": SIDE,
    "patch_size": 7,
    "num_channels": 1,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
SEEN = 256
"""Training pictures of a task that statistics are measured on."""


@dataclass(frozen=True)
class Training:
    """How the base and an expert are trained, in steps of ``batch`` pictures of one task."""

    base_steps: int = 400
    expert_steps: int = 300
    batch: int = 48
    base_rate: float = 1e-3
    expert_rate: float = 7e-4
    warm_up: int = 20


@dataclass(frozen=True)
class Items:
    """How many items of a task are scored: on validation, and on test for each of three seeds."""

    validation: int = 300
    test: int = 200


class VisionBench:
    """Four experts of one small vision transformer; the score is accuracy."""

    name = "d"
    title = "D: four sets of pictures on a tiny ViT (0.56 M parameters)"
    about = (
        "Upper garments and other articles of Fashion-MNIST, scikit-learn's digits, MNIST; linear heads that "
        "were trained with the base and then frozen, so that heads are never merged. The base is small and "
        "young, so its experts move far from it: no merge keeps much, and most are within their noise."
    )
    unit = "mean accuracy, %"
    measure: Measure = "accuracy"
    adapters = False
    seed_varies = "the order of an expert's training items, and which test items are scored"
    also: tuple[str, ...] = ()
    tokens = (SEEN, 17)
    packages = PACKAGES

    def __init__(
        self,
        root: Path,
        tasks: Sequence[str] = tuple(MAKERS),
        training: Training | None = None,
        items: Items | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.tasks = tuple(tasks)
        self.training, self.items, self.say = training or Training(), items or Items(), say
        self.sources = root / "sources"
        facts = {
            "made": 1,
            "tasks": self.tasks,
            "packages": self.packages,
            "sizes": SIZES,
            "shape": SHAPE,
            **asdict(self.training),
        }
        self.folder = keyed_folder(root, self.name, facts)

    def family(self, seed: int) -> Family:
        base = self.folder / "base"
        if not base.exists():
            self._train_base(base)
        experts = {task: self.folder / f"seed-{seed}" / task for task in self.tasks}
        for task, folder in experts.items():
            if not folder.exists():
                self._train_expert(task, seed, folder)
        return Family(base, experts, {name: self._pixels(name) for name in (*self.tasks, "base")})

    def score(self, folder: Path, split: Split, seed: int) -> Scored:
        model = opened(folder)
        items = {task: self._right(model, task, split, seed) for task in self.tasks}
        return Scored({task: mean(right) for task, right in items.items()}, items)

    def _right(self, model: Any, task: str, split: Split, seed: int) -> list[float]:
        """100 for every picture that is classified rightly, else 0."""
        count = getattr(self.items, split)
        begin = seed * count if split == "test" else 0
        pictures, wanted = (part[begin : begin + count] for part in self._data[task].splits[split])
        with torch.inference_mode():
            found = logits(model, self._heads, task, pictures).argmax(1)
        return [100.0 * bool(hit) for hit in found == wanted]

    @cached_property
    def _data(self) -> dict[str, ImageTask]:
        return image_tasks(self.sources, self.tasks)

    @cached_property
    def _heads(self) -> Mapping[str, Tensor]:
        """Weight and bias of every task's head, as they were when the base was ready."""
        return load_file(self.folder / "heads.safetensors")

    def _pixels(self, name: str) -> Path:
        """A folder of training pictures for statistics; the base sees some of every task."""
        folder = self.folder / "pixels" / name
        if not folder.exists():
            tasks = self.tasks if name == "base" else (name,)
            share = SEEN // len(tasks)
            seen = torch.cat([self._data[task].splits["train"][0][:share] for task in tasks])
            with made_whole(folder) as partial:
                save_file({"pixels": seen}, partial / "pixels.safetensors")
        return folder

    def _train_base(self, folder: Path) -> None:
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(**SHAPE))
        heads: dict[str, Tensor] = {}
        for task, known in self._data.items():
            head = torch.nn.Linear(SHAPE["hidden_size"], known.classes)
            heads |= {f"{task}.weight": head.weight, f"{task}.bias": head.bias}
        self._fit("base", model, heads, self.tasks)
        save_file({n: t.detach().clone() for n, t in heads.items()}, self.folder / "heads.safetensors")
        with made_whole(folder) as partial:
            model.save_pretrained(partial)

    def _train_expert(self, task: str, seed: int, folder: Path) -> None:
        model = opened(self.folder / "base")
        self._fit(f"{task} seed {seed}", model, self._heads, [task])
        with made_whole(folder) as partial:
            model.save_pretrained(partial)

    def _fit(self, name: str, model: Any, heads: Mapping[str, Tensor], tasks: Sequence[str]) -> None:
        """Learns from batches of one of ``tasks`` each. Heads learn too where they are not frozen."""
        how, rng, began = self.training, random.Random(name), time.monotonic()
        steps, rate = how.expert_steps, how.expert_rate
        if name == "base":
            steps, rate = how.base_steps, how.base_rate
        tuned = [*model.parameters(), *(head for head in heads.values() if head.requires_grad)]
        model.train()

        def loss_of() -> Tensor:
            task = rng.choice(tasks)
            pictures, labels = self._data[task].splits["train"]
            places = rng.choices(range(len(labels)), k=how.batch)
            return F.cross_entropy(logits(model, heads, task, pictures[places]), labels[places])

        loss = descend(tuned, loss_of, steps, rate, how.warm_up, 0.01)
        self.say(f"bench d: {name}: {steps} steps, loss {loss:.3f}, {time.monotonic() - began:.0f} s")


def opened(folder: Path) -> Any:
    """The encoder of a checkpoint."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return ViTModel.from_pretrained(folder, local_files_only=True).eval()  # type: ignore[no-untyped-call]


def logits(model: Any, heads: Mapping[str, Tensor], task: str, pictures: Tensor) -> Tensor:
    """What a task's head makes of pictures, [count, classes]: of the mean of the last states of patches."""
    states = model(pixel_values=pictures).last_hidden_state[:, 1:].mean(1)
    return F.linear(states, heads[f"{task}.weight"], heads[f"{task}.bias"])
