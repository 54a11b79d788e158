"""Adapters made by the engine, and what they mean, computed apart from it in float64."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.checkpoint.index import ModelIndex, attach, index_adapter_folder, index_folder
from merge.plan import Plan, make_plan
from merge.recipe.recipe import Recipe, recipe_from
from merge.report import Report
from merge.run import run

BUDGET = 256 << 20


def planned(root: Path, document: Mapping[str, Any], budget: int = BUDGET) -> Plan:
    """The plan of a recipe whose models are folders of ``root``."""
    recipe = recipe_from(dict(document))
    return make_plan(recipe, models_of(root, recipe), budget=budget)


def models_of(root: Path, recipe: Recipe) -> dict[str, ModelIndex]:
    """Every model of the recipe."""
    found = {} if recipe.base is None else {"base": index_folder(root / recipe.base, recipe.base)}
    for source in recipe.sources:
        index = index_folder(root / source.model, source.model)
        if source.adapter is not None:
            index = attach(index, index_adapter_folder(root / source.adapter, source.adapter))
        found[source.id] = index
    return found


def made(root: Path, document: Mapping[str, Any], out: str = "out", **options: Any) -> Report:
    """Runs the recipe into ``root/out``."""
    plan = planned(root, document)
    folders = {source.id: root / source.model for source in plan.recipe.sources}
    folders |= {f"{s.id}+adapter": root / s.adapter for s in plan.recipe.sources if s.adapter}
    if plan.recipe.base is not None:
        folders["base"] = root / plan.recipe.base
    return run(plan, folders, root / out, **({"budget_bytes": BUDGET, "threads": 1} | options))


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder, in float64."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor.double() for file in files for name, tensor in load_file(file).items()}


def changes(folder: Path) -> dict[str, Tensor]:
    """What an adapter folder adds to each weight, from its files alone (stored as the weight is)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {name.removeprefix("base_model.model."): t for name, t in weights(folder).items()}
    found = {}
    for name, b in tensors.items():
        if not name.endswith(("lora_B.weight", "lora_embedding_B")):
            continue
        path = name[: name.index(".lora_")]
        a = tensors[name.replace("lora_B", "lora_A").replace("embedding_B", "embedding_A")]
        rank = config["rank_pattern"].get(path, config["r"])
        alpha = config["alpha_pattern"].get(path, config["lora_alpha"])
        assert rank == a.shape[0]
        change = b @ a * (alpha / (rank**0.5 if config["use_rslora"] else rank))
        turned = name.endswith("embedding_B") or config["fan_in_fan_out"]
        found[f"{path}.weight"] = change.T if turned else change
    return found


def relative(wanted: Tensor, got: Tensor) -> float:
    """Relative Frobenius distance."""
    return float((wanted - got).norm() / torch.clamp(wanted.norm(), min=1e-30))
