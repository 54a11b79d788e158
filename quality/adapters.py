"""Bench E: five LoRA adapters over the base of bench B, one for each of its domains.

Texts, scores and the diet of an expert are bench B's; only the factors of an adapter are trained, by PEFT.
Every merge is of the adapters: methods for whole models see base plus product, the others the factors.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from demo.train_family import fit
from quality.bench import Family, Measure, Scored, Split
from quality.cache import keyed_folder, made_whole
from quality.pouring import Weights
from quality.tiny import Items, TinyBench, Training

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Lora:
    """How an adapter is made: its rank in every linear module, and steps of 16 rows of 128 tokens."""

    rank: int = 16
    alpha: int = 32
    steps: int = 200
    rate: float = 5e-3


class AdapterBench:
    """Five adapters of one small language model; the score is bits per byte, turned round."""

    name = "e"
    title = "E: five LoRA adapters on the tiny Llama of bench B (0.86 M parameters)"
    unit = "gain kept, %"
    measure: Measure = "gain"
    adapters = True
    seed_varies = "an adapter's first numbers, the order of its batches, and which test documents are scored"
    tasks, also, tokens, packages = TinyBench.tasks, TinyBench.also, TinyBench.tokens, TinyBench.packages

    def __init__(
        self,
        root: Path,
        training: Training | None = None,
        items: Items | None = None,
        lora: Lora | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.lora, self.say = lora or Lora(), say
        self.about = (
            f"The domains of bench B; an adapter has rank {self.lora.rank} in every linear module and was "
            f"trained for {self.lora.steps} steps on the diet of bench B's expert. Methods for whole models "
            "merge the base plus each adapter's product. *Given back* is no merge: each adapter as `rmm` "
            "restores it, scored on its own domain."
        )
        self._tiny = TinyBench(root, training, items, say)
        self.items = self._tiny.items
        facts = {"made": 1, "over": self._tiny.folder.name, **asdict(self.lora)}
        self.folder = keyed_folder(root, self.name, facts)

    def family(self, seed: int) -> Family:
        base = self._tiny.base()
        experts = {domain: self.folder / f"seed-{seed}" / domain for domain in self.tasks}
        for domain, folder in experts.items():
            self._trained(folder, base, domain, f"{domain} adapter seed {seed}")
        return Family(base, experts, self._tiny.files(), adapters=True)

    def score(self, model: Weights, split: Split, seed: int, tasks: Sequence[str] = ()) -> Scored:
        if isinstance(model, Path) and (model / CONFIG).exists():
            model = applied(self._tiny.base(), model)
        return self._tiny.score(model, split, seed, tasks)

    def _trained(self, folder: Path, base: Path, domain: str, name: str) -> None:
        """An adapter in ``folder``, trained now unless it is there."""
        if folder.exists():
            return
        _, rows = self._tiny.diet
        torch.manual_seed(crc32(name.encode()))
        config = LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model: Any = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
        began = time.monotonic()
        fit(model, rows, self._tiny.mix(domain), self.lora.steps, self.lora.rate, name)
        with made_whole(folder) as partial:
            model.save_pretrained(str(partial))
        self.say(f"bench e: {name}: {self.lora.steps} steps, {time.monotonic() - began:.0f} s")


def applied(base: Path, adapter: Path) -> Weights:
    """The tensors of the base with an adapter's products added, by PEFT itself."""
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(adapter))
    weights: Weights = model.merge_and_unload().state_dict()
    return weights
