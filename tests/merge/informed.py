"""Statistics on data that nobody measured: keyed numbers of the right shapes, in memory and as folders."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from merge.contract.informed import JOINT, KINDS
from merge.kernels.keyed import Draws, key_of
from merge.learn.statistics import FILE, MANIFEST, Manifest
from merge.plan import Plan
from merge.running.statistics import Measured

MOST_COLUMNS = 512
DEAD = 5
"""Every fifth channel is never active."""


class Held:
    """Statistics of one model in memory."""

    def __init__(self, values: Mapping[str, Tensor], axes: Mapping[str, int] | None = None) -> None:
        self.label = "memory"
        self.values = values
        self.names = {name: tuple(value.shape) for name, value in values.items()}
        self.axes = axes or {}
        self.twins: dict[str, str] = {}

    def read(self, name: str, first: int, count: int) -> Tensor:
        return self.values[name].reshape(-1)[first : first + count].to(torch.float32)

    def axis(self, tensor: str) -> int | None:
        return self.axes.get(tensor)


def synthetic(model: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Every kind of statistic, for the tensors that have it: of channels for matrices and vectors, matrices
    for matrices that are not too wide, and one number an entry for all but embeddings.
    """
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        for kind, known in KINDS.items():
            value = _value(model, name, kind, known.layout, tuple(shape))
            if value is not None:
                found[f"{kind}/{name}"] = value
    found.update({f"{kind}/nowhere": torch.zeros(1) for kind in KINDS})
    return found


def _value(model: str, name: str, kind: str, layout: str, shape: tuple[int, ...]) -> Tensor | None:
    key = key_of("statistic", model, kind, name)
    if layout == "entry":
        drawn = Draws(key, 0, shape).uniform() if 0 not in shape else torch.zeros(shape)
        return None if "embed" in name else drawn * (drawn > 0.1)
    if len(shape) not in (1, 2) or 0 in shape or "embed" in name:
        return None
    width = shape[-1]
    if layout == "channel":
        drawn = Draws(key, 0, (width,)).uniform()
        return drawn * (torch.arange(width) % DEAD > 0)
    if layout == "square" and len(shape) == 2 and width <= MOST_COLUMNS:
        inputs = Draws(key, 0, (width + 3, width)).uniform().mul(64).round()
        return inputs.T @ inputs / 4096
    return None


def held(models: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> dict[str, Measured]:
    """Synthetic statistics of several models, in memory."""
    found: dict[str, Measured] = {model: Held(synthetic(model, shapes)) for model in models}
    return {**found, **{model + JOINT: each for model, each in found.items()}}


def write(folder: Path, values: Mapping[str, Tensor], axes: Mapping[str, int] | None = None) -> Path:
    """A folder of statistics as the collector leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in values.items()}, folder / FILE)
    kinds = tuple(sorted({name.partition("/")[0] for name in values}))
    manifest = Manifest(folder.name, kinds, "model", "tokenizer", "data", {}, 64, 2, axis=axes or {})
    (folder / MANIFEST).write_text(json.dumps(manifest.as_dict()))
    return folder


def of_all(models: Iterable[str]) -> tuple[str, ...]:
    """The keys of every folder of statistics of these models."""
    return tuple(key for model in models for key in (model, model + JOINT))


def folders_for(plan: Plan, root: Path) -> dict[str, Path]:
    """Folders of synthetic statistics for whatever a plan needs, written where they are not there yet."""
    found = {}
    for key in plan.statistics.folders:
        folder, model = root / f"{key}.statistics", key.removesuffix(JOINT)
        if not folder.exists():
            shapes = {name: info.shape for name, info in plan.models[model].tensors.items()}
            write(folder, synthetic(model, shapes))
        found[key] = folder
    return found
