"""The names of models in a recipe, and where they stand."""

from collections.abc import Iterator
from dataclasses import dataclass

from merge.recipe.document import pointer_of
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER, leaves


@dataclass(frozen=True)
class Wish:
    """One name in the recipe. ``pointer`` is its JSON pointer, ``member`` the model of a bundle it means."""

    role: str
    name: str
    pointer: str
    member: str | None = None

    @property
    def is_adapter(self) -> bool:
        return self.role.endswith(ADAPTER)

    @property
    def model(self) -> str:
        return self.role.removesuffix(ADAPTER)


def wishes_of(recipe: Recipe) -> Iterator[Wish]:
    """Every model that a recipe and its stages name."""
    for each in leaves(recipe):
        yield Wish(each.role, each.name, pointer_of(*each.at), each.member)
