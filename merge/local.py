"""The models of a recipe in local folders: where each lies, and what its headers say. No torch."""

import re
from pathlib import Path

from merge.checkpoint.index import ModelIndex, attach, index_adapter_folder, index_folder
from merge.file_errors import ModelNotFound
from merge.plan import collector_at_rest
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER, leaves

_ON_THE_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(@[\w./-]+)?")


def model_folders(recipe: Recipe, root: Path) -> dict[str, Path]:
    """Where each model of a recipe lies; names are relative to ``root``, the recipe's own folder."""
    paths = {each.role: root / each.name for each in leaves(recipe)}
    return {key: path.parent if path.is_file() else path for key, path in paths.items()}


@collector_at_rest()
def index_models(recipe: Recipe, root: Path) -> dict[str, ModelIndex]:
    """Every model of a recipe as its headers describe it, adapters attached."""
    found: dict[str, ModelIndex] = {}
    for each in leaves(recipe):
        _check_there(root, each.name)
        if each.is_adapter:
            model = each.role.removesuffix(ADAPTER)
            adapter = index_adapter_folder(root / each.name, each.name)
            found[model] = attach(found[model], adapter, each.member)
        else:
            found[each.role] = index_folder(root / each.name, each.name)
    return found


def _check_there(root: Path, name: str) -> None:
    """Who names a repository of the Hub is told how it becomes a folder."""
    named = _ON_THE_HUB.fullmatch(name)
    if named is None or (root / name).exists():
        return
    revision = f" --revision {named[2][1:]}" if named[2] else ""
    raise ModelNotFound(
        f"{name}: there is no folder or file of that name beside the recipe, and nothing is fetched here: "
        f"`hf download {named[1]}{revision} --local-dir {name}` makes one of a repository."
    )
