"""What a plain run of whole models in float64 says, to compare with what is measured block by block."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.func import functional_call

from merge.checkpoint.index import index_folder
from merge.learn.batches import Batch, batches_of
from merge.learn.samples import Samples, read_samples
from merge.learn.skeleton import Skeleton
from tests.merge.test_gather import CALIBRATION


def texts(root: Path) -> Samples:
    """The set on which ``tests.merge.test_gather`` measures."""
    documents, tokens = CALIBRATION["documents"], CALIBRATION["tokens"]
    assert isinstance(documents, int) and isinstance(tokens, int)
    return read_samples(root / "texts.txt", documents=documents, tokens=tokens)


def sequences(root: Path, model: str) -> list[Batch]:
    """Every sequence by itself."""
    folder = root / model
    every = batches_of(Skeleton(index_folder(folder)), folder, texts(root)).every
    return [batch.one(at) for batch in every for at in range(batch.sequences)]


def load(root: Path, model: str) -> Any:
    """A Llama, whole, in float64."""
    kind: Any = transformers.LlamaForCausalLM
    return kind.from_pretrained(root / model, dtype=torch.float64).eval()


def loss(model: Any, weights: dict[str, Tensor], batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the tokens that follow."""
    ids = batch.inputs["input_ids"]
    logits = functional_call(model, weights, kwargs={"input_ids": ids}).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:])


def gradients(model: Any, weights: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Of the loss of one sequence."""
    leaves = {name: value.detach().clone().requires_grad_(True) for name, value in weights.items()}
    found = torch.autograd.grad(loss(model, leaves, batch), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))
