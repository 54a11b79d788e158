"""Where in a model a tensor stands: list of layers, layer, part of a layer. Loads no torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from merge.arch.roles import tower_and_layer


@dataclass(frozen=True, order=True)
class Spot:
    """A part of a layer, such as ``mlp.down_proj``; numbers in its name (of experts, say) are ``*``."""

    tower: str
    layer: int
    part: str


def spot_of(name: str) -> Spot | None:
    """The spot of a tensor; ``None`` outside the layers."""
    found = tower_and_layer(name)
    if found is None:
        return None
    tower, layer = found
    inside = name.removeprefix(f"{tower}.{layer}.").removesuffix(".weight").split(".")
    return Spot(tower, layer, ".".join("*" if each.isdecimal() else each for each in inside))


def labels_of(towers: Iterable[str]) -> dict[str, str]:
    """What to write before the parts of each list of layers: nothing where there is one list only."""
    known = list(dict.fromkeys(towers))
    return {tower: f"{tower}: " if len(known) > 1 else "" for tower in known}
