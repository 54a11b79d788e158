"""Which weights a bundle's router looks at that needs no examples. Loads no torch."""

import re
from collections.abc import Mapping

from merge.checkpoint.index import ModelIndex
from merge.errors import GateUnsupported

DIRECTIONS = 8
"""Kept of every member, unless somebody says otherwise."""
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def last_layer(base: ModelIndex) -> int:
    """The number of the last layer. Raises ``GateUnsupported`` where layers have none."""
    numbers = [int(found[1]) for found in map(LAYER.search, base.tensors) if found is not None]
    if not numbers:
        raise GateUnsupported(f"{base.label} has no numbered layers to route by.")
    return max(numbers)


def gate_weight(base: ModelIndex, layer: int | None) -> tuple[int, str]:
    """A layer, the last one unless it is said, and the name of its value projection. Raises
    ``GateUnsupported``.
    """
    at = last_layer(base) if layer is None else layer
    pattern = rf"(?:.*\.)?layers\.{at}\.self_attn\.v_proj\.weight"
    name = next((name for name in base.tensors if re.fullmatch(pattern, name)), None)
    if name is None:
        raise GateUnsupported(f"{base.label} has no layers.{at}.self_attn.v_proj.weight to route by.")
    return at, name


def gate_files(base: ModelIndex, members: Mapping[str, ModelIndex], name: str) -> dict[str, set[str]]:
    """The weight files that hold a tensor of the base (under ``base``) and every member's change to it."""
    found = {"base": {part.file for part in base.tensors[name].stored}}
    for member, index in members.items():
        stored = index.adapter.stored(name) if index.adapter is not None else ()
        found[member] = {part.file for part in stored}
    return found
