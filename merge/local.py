"""The models of a recipe in local folders: where each lies, and what its headers say. No torch."""

from pathlib import Path

from merge.checkpoint.index import ModelIndex, attach, index_adapter_folder, index_folder
from merge.plan import collector_at_rest
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER, leaves


def model_folders(recipe: Recipe, root: Path) -> dict[str, Path]:
    """Where each model of a recipe lies; names are relative to ``root``, the recipe's own folder."""
    paths = {each.role: root / each.name for each in leaves(recipe)}
    return {key: path.parent if path.is_file() else path for key, path in paths.items()}


@collector_at_rest()
def index_models(recipe: Recipe, root: Path) -> dict[str, ModelIndex]:
    """Every model of a recipe as its headers describe it, adapters attached."""
    found: dict[str, ModelIndex] = {}
    for each in leaves(recipe):
        if each.is_adapter:
            model = each.role.removesuffix(ADAPTER)
            adapter = index_adapter_folder(root / each.name, each.name)
            found[model] = attach(found[model], adapter, each.member)
        else:
            found[each.role] = index_folder(root / each.name, each.name)
    return found
