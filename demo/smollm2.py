"""SmolLM2-135M-Instruct and three experts trained on the spot, cached; what ``make demo MODELS=smollm2``
merges.

An expert tunes the top 10 of 30 layers for 40 steps, which is what makes it affordable on a CPU: the
backward pass stops there. Every model is kept as soon as it is made, so a rerun goes on from there.
"""

import argparse
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo.smollm2_tasks import TASKS, Labelled, sum_of, write_tasks
from demo.smollm2_weights import prepare_base

TOP_LAYERS, STEPS, WARM_UP, RATE = 10, 40, 5, 2e-4
IGNORED = -100  # a target that cross-entropy leaves out

Row = tuple[list[int], int]
"""Token ids, and how many of them at the beginning are not learnt."""


def draw_rows(
    task: str, rows: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> list[Row]:
    """The rows of one training batch."""
    if task == "sums":
        lines = ["".join(f"{p}{r}\n" for p, r in (sum_of(rng, "train") for _ in range(11))) for _ in range(6)]
        return [(tokenizer(text)["input_ids"][:72], 0) for text in lines]
    batch = []
    for row in rng.choices(rows, k=16):
        prompt = tokenizer(row.prompt)["input_ids"]
        batch.append((prompt + tokenizer(f" {row.label}\n")["input_ids"], len(prompt)))
    return batch


def pad(rows: Sequence[Row], filler: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, attention mask and targets, each [rows, longest], padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), width), filler)
    targets = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros_like(inputs)
    for index, (ids, skipped) in enumerate(rows):
        inputs[index, : len(ids)] = torch.tensor(ids)
        targets[index, skipped : len(ids)] = torch.tensor(ids[skipped:])
        mask[index, : len(ids)] = 1
    return inputs, mask, targets


def train_expert(
    task: str, base: Path, rows: Sequence[Labelled], folder: Path, say: Callable[[str], None], seed: int = 0
) -> None:
    """Tunes the top layers on one task and writes the whole model, bfloat16, into ``folder``; ``seed`` draws
    the batches.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base, local_files_only=True)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    model.requires_grad_(False)
    tuned = list(model.model.layers[-TOP_LAYERS:].parameters())
    for parameter in tuned:
        parameter.requires_grad_(True)
    model.train()
    optimizer = torch.optim.AdamW(tuned, lr=RATE, weight_decay=0.0, fused=True)
    rng = random.Random(f"expert {task}" + (f" seed {seed}" if seed else ""))
    started, loss = time.monotonic(), math.nan
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        inputs, mask, targets = pad(draw_rows(task, rows, tokenizer, rng), tokenizer.pad_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=inputs, attention_mask=mask).logits
        wanted = targets[:, 1:] != IGNORED
        objective = F.cross_entropy(logits[:, :-1][wanted].float(), targets[:, 1:][wanted])
        optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss = objective.item()
        seconds = time.monotonic() - started
        say(f"training expert {task}: step {step + 1}/{STEPS}, loss {loss:.2f}, {seconds:.0f} s")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.bfloat16().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n# SmolLM2-135M tuned on {task}\n")
    partial.rename(folder)


def prepare(cache: Path, say: Callable[[str], None] = print) -> Mapping[str, Path]:
    """The base and the experts, by name, made where they are not in ``cache``; the sets lie in
    ``cache/texts``.

    Raises TextsMissing or PackageMissing with the reason where a source is out of reach.
    """
    folders = {name: cache / name for name in ("base", *TASKS)}
    if all((folder / "README.md").exists() for folder in folders.values()):
        return folders
    cache.mkdir(parents=True, exist_ok=True)
    rows = write_tasks(cache)
    prepare_base(cache, say)
    for task in TASKS:
        if not (folders[task] / "README.md").exists():
            train_expert(task, folders["base"], rows.get(task, []), folders[task], say)
    return folders


def main() -> None:
    """Prepares the family alone: ``python -m demo.smollm2 [--cache FOLDER] [--threads N]``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=Path(".mergery/cache/smollm2"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prepare(options.cache, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
