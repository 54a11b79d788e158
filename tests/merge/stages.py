"""Merges with stages, at once and stage by stage."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.checkpoint.index import ModelIndex, index_folder
from merge.plan import Plan, make_plan
from merge.recipe.recipe import Recipe, recipe_from
from merge.recipe.stages import in_order, leaves
from merge.run import run

BUDGET = 160 << 20


def at(recipe: Recipe, folders: Mapping[str, Path]) -> dict[str, Path]:
    """The folders of a recipe's models, by role."""
    return {each.role: folders[each.name] for each in leaves(recipe)}


def planned(document: dict[str, Any], folders: Mapping[str, Path], **more: Any) -> Plan:
    """The plan of a recipe whose models are named by the keys of ``folders``."""
    recipe = recipe_from(document)
    return make_plan(recipe, indices(recipe, folders), **{"budget": BUDGET, **more})


def indices(recipe: Recipe, folders: Mapping[str, Path]) -> dict[str, ModelIndex]:
    """The models of a recipe and of its stages, by role."""
    return {each.role: index_folder(folders[each.name], each.name) for each in leaves(recipe)}


def merged(document: dict[str, Any], folders: Mapping[str, Path], out: Path, **more: Any) -> Path:
    """The folder that a recipe was merged into."""
    plan = planned(document, folders)
    options = {"budget_bytes": BUDGET, "threads": 2, "survey": "none", **more}
    run(plan, at(plan.recipe, folders), out, **options)
    return out


def by_hand(document: dict[str, Any], folders: Mapping[str, Path], root: Path) -> Path:
    """Every stage into a folder of its own, one after another, then the last merge on those."""
    known = dict(folders)
    for name in in_order(recipe_from(document)):
        known[f"stage-{name}"] = merged(alone(document["stages"][name]), known, root / name)
    return merged(alone({**document, "stages": {}}), known, root / "last")


def alone(document: dict[str, Any]) -> dict[str, Any]:
    """A stage's recipe, or the last one, with folders in place of stages."""
    made: dict[str, Any] = json.loads(json.dumps(document).replace("stage:", "stage-"))
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which names the inputs."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "mergery.json"}
