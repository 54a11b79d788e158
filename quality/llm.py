"""Bench C: SmolLM2-135M-Instruct and three experts that tune its top 10 of 30 layers.

Tasks are questions with four answers, of which the likeliest per byte is taken: two-digit sums, the section
of a Debian package, the kind of a noun. What the base does on plain English is scored beside them. A merge
leaves the lower 20 layers as they are, so what they make of the questions is computed once and recalled.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from demo.smollm2 import RATE, STEPS, TOP_LAYERS, train_expert
from demo.smollm2_tasks import (
    SECTIONS,
    TASKS,
    Labelled,
    balanced,
    debian_descriptions,
    label_questions,
    noun_kinds,
    sum_of,
    sum_questions,
)
from demo.smollm2_weights import GGUF, WHEEL, prepare_base
from demo.texts import KINDS
from quality.bench import Family, Measure, Scored, Split, from_scorer
from quality.cache import keyed_folder, write
from quality.pouring import Weights, pour, tensors_of
from quality.tiny_texts import ENGLISH, PACKAGES, tiny_texts
from scoring.model import LoadedModel, load
from scoring.runner import score_loaded
from scoring.tasks import ChoiceTask, PerplexityTask, Question

SPLITS = {"validation": "validation", "test": "held-out"}


@dataclass(frozen=True)
class Items:
    """How many questions of a task are asked: on validation, and on test for each of three seeds; and pages
    of English.
    """

    validation: int = 48
    test: int = 64
    pages: int = 12
    of_a_class: ClassVar[int] = 16
    """Questions with one and the same right answer, at most, of all that are asked of a task."""


class LlmBench:
    """Three experts of one real language model; the score is accuracy."""

    name = "c"
    title = "C: three tasks on SmolLM2-135M-Instruct"
    about = (
        "Two-digit sums, section of a Debian package, kind of a noun: four answers each. English is bits per "
        "byte of plain prose, turned round."
    )
    unit = "mean accuracy, %"
    measure: Measure = "accuracy"
    adapters = False
    seed_varies = "the order of an expert's batches, and which test questions are asked"
    tasks = TASKS
    also = (ENGLISH,)
    tokens = (24, 128)
    packages = (WHEEL, GGUF, *PACKAGES)

    def __init__(self, root: Path, items: Items | None = None, say: Callable[[str], None] = print) -> None:
        self.items, self.say = items or Items(), say
        self.sources = root / "sources"
        self.shared = root / "smollm2"
        how = {"steps": STEPS, "rate": RATE, "top": TOP_LAYERS}
        facts = {"made": 1, "packages": self.packages, **how}
        self.folder = keyed_folder(root, self.name, facts)

    def family(self, seed: int) -> Family:
        base = prepare_base(self.shared, self.say)
        experts = {task: self.folder / f"seed-{seed}" / task for task in self.tasks}
        for task, folder in experts.items():
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                train_expert(task, base, self._rows.get(task, []), folder, lambda _: None, seed)
                self.say(f"bench c: {task} seed {seed} trained")
        return Family(base, experts, {task: self._file(task) for task in self.tasks})

    def score(self, model: Weights, split: Split, seed: int, tasks: Sequence[str] = ()) -> Scored:
        pour(self._loaded.model, model)
        self._recall.usable = all(
            torch.equal(values.bfloat16(), self._lower[name])
            for name, values in tensors_of(model)
            if name in self._lower
        )
        wanted = [each for each in self._questions(split, seed) if not tasks or each.name in tasks]
        return from_scorer(score_loaded(self._loaded, wanted, per_example=True), self.measure)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load(self.shared / "base", dtype="bfloat16")

    @cached_property
    def _recall(self) -> "Recall":
        return Recall(self._loaded.model.model.layers[:-TOP_LAYERS])

    @cached_property
    def _lower(self) -> Mapping[str, Tensor]:
        """What no expert has changed: everything below the tuned layers, embeddings too."""
        layers = len(self._loaded.model.model.layers)
        tuned = tuple(f"model.layers.{layer}." for layer in range(layers - TOP_LAYERS, layers))
        return {
            name: values
            for name, values in tensors_of(self.shared / "base")
            if not name.startswith(tuned) and name != "model.norm.weight"
        }

    @cached_property
    def _labelled(self) -> dict[str, tuple[Sequence[Labelled], Sequence[str]]]:
        return {
            "debian": (debian_descriptions(), list(SECTIONS.values())),
            "wordnet": (noun_kinds(self.sources), list(KINDS.values())),
        }

    @cached_property
    def _rows(self) -> dict[str, list[Labelled]]:
        """What the two experts with labels learn from."""
        return {task: balanced(rows, "train", 200) for task, (rows, _) in self._labelled.items()}

    def _questions(self, split: Split, seed: int) -> list[ChoiceTask | PerplexityTask]:
        count = getattr(self.items, split)
        begin = seed * count if split == "test" else 0
        most, named = begin + count, SPLITS[split]
        asked = {"sums": sum_questions(named, most)}
        for task, (rows, labels) in self._labelled.items():
            asked[task] = label_questions(balanced(rows, named, self.items.of_a_class), labels, most)
        tasks: list[ChoiceTask | PerplexityTask] = [
            ChoiceTask(task, tuple(Question(q.context, q.choices, q.answer) for q in found[begin:most]))
            for task, found in asked.items()
        ]
        pages = self._english[split][ENGLISH][seed * self.items.pages :][: self.items.pages]
        return [*tasks, PerplexityTask(ENGLISH, tuple(pages))]

    @cached_property
    def _english(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return tiny_texts(self.folder, self.sources)

    def _file(self, task: str) -> Path:
        """Training texts of a task, for statistics."""
        path = self.folder / "texts" / f"{task}.jsonl"
        if not path.exists():
            rng = random.Random("texts")
            made = (
                [
                    "".join(f"{p}{r}\n" for p, r in (sum_of(rng, "train") for _ in range(11)))
                    for _ in range(200)
                ]
                if task == "sums"
                else [f"{row.prompt} {row.label}\n" for row in self._rows[task][:600]]
            )
            write(path, "".join(json.dumps({"text": text}) + "\n" for text in made))
        return path


@dataclass(frozen=True)
class Answers(Items):
    """More questions, asked how likely their right answers are."""

    validation: int = 128
    test: int = 104
    of_a_class: ClassVar[int] = 32
    measure: Measure = "likelihood"


class AnswerBench(LlmBench):
    """Bench C for searches: so few questions make accuracy a stair, of which a search sees little, so a
    question counts by how likely its right answer is among the four.
    """

    unit = "log2 of the right answer's share"
    measure: Measure = "likelihood"

    def __init__(self, root: Path, items: Answers | None = None, say: Callable[[str], None] = print) -> None:
        super().__init__(root, items or Answers(), say)


class Recall:
    """Remembers what a stack of layers makes of every batch, as long as ``usable`` says they are as they
    were.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.usable, self._known, self._at = True, dict[str, Tensor](), ""
        for place, layer in enumerate(layers):
            layer.forward = partial(self._forward, place, place == len(layers) - 1, layer.forward)

    def _forward(
        self, place: int, last: bool, forward: Callable[..., Tensor], states: Tensor, **others: Any
    ) -> Tensor:
        if not self.usable:
            return forward(states, **others)
        if place == 0:
            raw = states.contiguous().view(torch.int16).numpy()
            self._at = hashlib.sha256(f"{states.shape}".encode() + raw.tobytes()).hexdigest()
        if self._at in self._known:
            return self._known[self._at] if last else states
        made = forward(states, **others)
        if last:
            self._known[self._at] = made
        return made
