"""Puts the weights of a checkpoint into a model that is already in memory: scoring hundreds of merges of one
shape needs no hundreds of loads.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

Weights = Path | Mapping[str, Tensor]
"""A checkpoint: a folder of safetensors, or its tensors by name."""


def tensors_of(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, one after another."""
    if isinstance(weights, Path):
        yield from _read(weights)
    else:
        yield from weights.items()


def _read(folder: Path) -> Iterator[tuple[str, Tensor]]:
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else None
    for name in files or ["model.safetensors"]:
        with safe_open(folder / name, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (not a mapping)
                yield key, opened.get_tensor(key)


def pour(model: Any, weights: Weights) -> None:
    """Copies a checkpoint into ``model``, whose tensors have the checkpoint's names.

    Raises ``KeyError`` where a parameter of the model is not in the checkpoint (tied ones count as one).
    """
    wanted = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in tensors_of(weights):
            target = wanted.pop(name, None)
            if target is not None:
                target.copy_(values)
    if wanted:
        whose = weights if isinstance(weights, Path) else "the checkpoint"
        raise KeyError(f"{whose} lacks {', '.join(sorted(wanted)[:3])}")
