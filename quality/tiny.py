"""Bench B: a Llama of 0.86 million parameters trained from scratch, and one expert for each of five domains.

Scores are bits per byte of held-out text with the sign turned, so that larger is better here too. Three
quarters of an expert's diet are its domain, the rest is the base's own mix: a linear merge needs experts that
stay near a base that has converged.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from demo.train_family import BASE_RATE, EXPERT_RATE, REPLAY, fit, new_model, streams, train_tokenizer
from quality.bench import Family, Measure, Scored, Split, from_scorer
from quality.cache import keyed_folder, made_whole, write
from quality.pouring import Weights, pour
from quality.tiny_texts import ENGLISH, EXPERTS, PACKAGES, Texts, tiny_texts
from scoring.model import LoadedModel, load
from scoring.runner import score_loaded
from scoring.tasks import PerplexityTask

MIX = {
    "english": 0.4,
    "python": 0.15,
    "german": 0.12,
    "spanish": 0.12,
    "arithmetic": 0.06,
    "dictionary": 0.15,
}


@dataclass(frozen=True)
class Training:
    """Steps of 16 rows of 128 tokens."""

    base_steps: int = 1500
    expert_steps: int = 150


@dataclass(frozen=True)
class Items:
    """How many documents of a domain are scored: on validation, and on test for each of three seeds; and the
    tokens a model sees at once, which are no more than it was trained on.
    """

    validation: int = 10
    test: int = 20
    window: int = 128


class TinyBench:
    """Five experts of one small language model; the score is bits per byte, turned round."""

    name = "b"
    title = "B: five domains on a tiny Llama (0.86 M parameters)"
    about = (
        "Python source, German, Spanish, sums, a dictionary; English is what the base itself does best, and "
        "is scored beside them."
    )
    unit = "gain kept, %"
    measure: Measure = "gain"
    adapters = False
    seed_varies = "the order of an expert's batches, and which test documents are scored"
    tasks = EXPERTS
    also = (ENGLISH,)
    tokens = (48, 128)
    packages = PACKAGES

    def __init__(
        self,
        root: Path,
        training: Training | None = None,
        items: Items | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.training, self.items, self.say = training or Training(), items or Items(), say
        self.sources = root / "sources"
        facts = {"made": 1, "mix": MIX, "replay": REPLAY, "packages": self.packages, **asdict(self.training)}
        self.folder = keyed_folder(root, self.name, facts)

    def family(self, seed: int) -> Family:
        base = self.base()
        experts = {domain: self.folder / f"seed-{seed}" / domain for domain in self.tasks}
        for domain, folder in experts.items():
            name = f"{domain} seed {seed}"
            self._trained(folder, base, name, self.mix(domain), self.training.expert_steps, EXPERT_RATE)
        return Family(base, experts, self.files())

    def base(self) -> Path:
        """The base, trained now where it is not there."""
        folder = self.folder / "base"
        self._trained(folder, None, "base", MIX, self.training.base_steps, BASE_RATE)
        return folder

    def mix(self, domain: str) -> dict[str, float]:
        """The diet of a domain's expert, by shares."""
        return {d: share * REPLAY + (1 - REPLAY) * (d == domain) for d, share in MIX.items()}

    def files(self) -> dict[str, Path]:
        """Training texts for every model to be measured on."""
        return {name: self._file(name) for name in (*self.tasks, "base")}

    def score(self, model: Weights, split: Split, seed: int, tasks: Sequence[str] = ()) -> Scored:
        pour(self._loaded.model, model)
        count = getattr(self.items, split)
        begin = seed * count if split == "test" else 0
        wanted = [
            PerplexityTask(domain, tuple(self._texts[split][domain][begin : begin + count]))
            for domain in tasks or (*self.tasks, *self.also)
        ]
        return from_scorer(score_loaded(self._loaded, wanted, window=self.items.window, per_example=True))

    @cached_property
    def _texts(self) -> Texts:
        return tiny_texts(self.folder, self.sources)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load(self.folder / "base")

    @cached_property
    def diet(self) -> tuple[Any, Any]:
        """The tokenizer, and one row of tokens a domain to train on."""
        texts = {domain: list(found) for domain, found in self._texts["train"].items()}
        tokenizer = train_tokenizer(texts, self.folder / "tokenizer.json")
        return tokenizer, streams(texts, tokenizer)

    def _trained(
        self, folder: Path, start: Path | None, name: str, mix: Mapping[str, float], steps: int, rate: float
    ) -> None:
        """A model in ``folder``, float32, trained now unless it is there."""
        if folder.exists():
            return
        tokenizer, rows = self.diet
        model = new_model() if start is None else LlamaForCausalLM.from_pretrained(start)
        began = time.monotonic()
        fit(model, rows, dict(mix), steps, rate, name)
        with made_whole(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        self.say(f"bench b: {name}: {steps} steps, {time.monotonic() - began:.0f} s")

    def _file(self, name: str) -> Path:
        """Training texts of a domain for statistics; the base is measured on the mix it was trained on."""
        path = self.folder / "texts" / f"{name}.jsonl"
        if not path.exists():
            shares = MIX if name == "base" else {name: 1.0}
            train = self._texts["train"]
            texts = [text for domain, share in shares.items() for text in train[domain][: round(200 * share)]]
            write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path
