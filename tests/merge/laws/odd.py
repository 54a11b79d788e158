"""A family of models with every awkward tensor: scalars, empty ones, one entry, kernels, all float dtypes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.contract.informed import KINDS
from merge.contract.method import Method
from merge.kernels.keyed import Draws, key_of
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from tests.merge import exact, informed
from tests.merge.every import count_of, steps_of

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
SHAPES: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {
    "scalar.weight": ((), F32),
    "empty.weight": ((0, 8), BF16),
    "one.bias": ((1,), F16),
    "vector.weight": ((70_001,), BF16),
    "matrix.weight": ((33, 7), F64),
    "column.weight": ((9, 1), F32),
    "conv.weight": ((5, 3, 2, 2), F16),
    "wide.weight": ((5, 40_000), BF16),
    "tall.weight": ((2100, 64), F32),
    "tied.weight": ((40, 8), BF16),
    "still.weight": ((12, 4), BF16),
    "small.weight": ((6, 6), F32),
}
IDS = "abcdefgh"
SMALL, GIB = 112 << 20, 1 << 30


def tensor(model: str, name: str) -> Tensor:
    """``tied`` changes by equal magnitudes, ``still`` not at all, ``small`` by denormals."""
    shape, dtype = SHAPES[name]
    common = Draws(key_of("base", name), 0, shape).uniform() - 0.5
    own = Draws(key_of(model, name), 0, shape).uniform() - 0.5
    if model == "base" or name.startswith("still"):
        return common.to(dtype)
    if name.startswith("tied"):
        return (common.mul(8).round() / 8 + own.sign() / 16).to(dtype)
    if name.startswith("small"):
        return (own * 1e-44).to(dtype)
    return (common + own / 16).to(dtype)


def family(root: Path, count: int = 3) -> dict[str, Path]:
    """Folders of the base and of ``count`` sources."""
    names = ("base", *IDS[:count])
    return {name: write(root / name, name) for name in names}


def write(folder: Path, model: str, **changed: Tensor) -> Path:
    """One model; ``changed`` are tensors by the first part of their name."""
    tensors = {name: changed.get(name.split(".")[0], tensor(model, name)) for name in SHAPES}
    return exact.write(folder, model, {}, extra=tensors, shards=2)


def planned(
    folders: Mapping[str, Path],
    method: Method,
    values: Mapping[str, Any],
    count: int | None = None,
    **more: Any,
) -> Plan:
    """The shortest chain with this method, over as many sources as it takes."""
    ids = IDS[: count or count_of(method)]
    document: dict[str, Any] = {
        "base": "base",
        "sources": [{"id": name, "model": name, "weight": 1 - place / 4} for place, name in enumerate(ids)],
        "steps": [{"method": name, **settings} for name, settings in steps_of(method, dict(values))],
        "seed": 7,
    }
    if any(KINDS[statistic.kind].layout == "square" for statistic in method.needs.statistics):
        document["overrides"] = [{"match": "wide.weight", "policy": "mean"}]  # its matrix would be 6 GB
    used = {name: folders[name] for name in ("base", *ids)}
    return make_plan(
        recipe_from(document | more), exact.indices(used), budget=GIB, measured=informed.of_all(used)
    )
