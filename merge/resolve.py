"""From a recipe to plain numbers for one tensor: curves, overrides and per-source values are resolved.

For one setting of one step, weakest first: the step, the source, then each matching override in order. A
name written ``method.setting`` speaks to that step only and wins over the bare name at the same place.
"""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Any

from merge.document import pointer_of
from merge.recipe import Curve, Override, Recipe, Step


@dataclass(frozen=True)
class Site:
    """One place of a recipe where a setting's value is written, for whoever checks them against a schema.

    ``step`` is ``None`` where the setting is meant for every step that has it.
    """

    pointer: str
    step: int | None
    method: str | None
    setting: str
    value: Any
    source: str | None


def settings_for(
    tensor: str,
    role: str,
    layer: int | None,
    depth: float,
    step: Step,
    recipe: Recipe,
    *,
    knobs: Container[str] | None = None,
) -> dict[str, Any]:
    """Plain values of the step's settings for one tensor; a tuple in source order where sources may differ.

    ``depth`` is 0 to 1 (see ``Towers.depth``). ``knobs`` are the settings this step's method has: what
    sources and overrides say about others is left out. In a tuple ``None`` means that nothing was said: the
    method's default.
    """
    settings = {name: at_depth(value, depth) for name, value in step.settings.items()}
    for position, source in enumerate(recipe.sources):
        for name, value in _said(source.settings, step.method, knobs):
            _set_one(settings, name, position, len(recipe.sources), at_depth(value, depth))
    for override in _matching(tensor, role, layer, recipe):
        for name, value in _said(override.settings, step.method, knobs):
            if override.source is None:
                settings[name] = at_depth(value, depth)
            else:
                position = recipe.source_ids().index(override.source)
                _set_one(settings, name, position, len(recipe.sources), at_depth(value, depth))
    return settings


def weights_for(tensor: str, role: str, layer: int | None, depth: float, recipe: Recipe) -> tuple[float, ...]:
    """Each source's weight for one tensor, in source order."""
    weights = [float(at_depth(source.weight, depth)) for source in recipe.sources]
    for override in _matching(tensor, role, layer, recipe):
        if "weight" not in override.settings:
            continue
        value = float(at_depth(override.settings["weight"], depth))
        for position, source in enumerate(recipe.sources):
            if override.source in (None, source.id):
                weights[position] = value
    return tuple(weights)


def policy_for(tensor: str, role: str, layer: int | None, recipe: Recipe) -> str | None:
    """The policy the recipe asks for: the last matching override's, else its class's, else ``None``."""
    policy = next((chosen for of, chosen in recipe.classes.items() if of == role), None)
    for override in _matching(tensor, role, layer, recipe):
        policy = override.policy or policy
    return policy


def at_depth(value: Any, depth: float) -> Any:
    """A plain value: a list of numbers is interpolated at ``depth``; of a list of words one is picked."""
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(item, bool | str) for item in value):
        return value[int(depth * (len(value) - 1))]
    return interpolate(tuple(value), depth)


def interpolate(curve: Curve, depth: float) -> float:
    """Linear interpolation of evenly spread points at ``depth`` in 0 to 1; never leaves the points' range."""
    if not isinstance(curve, tuple):
        return float(curve)
    place = min(max(depth, 0.0), 1.0) * (len(curve) - 1)
    left = min(int(place), len(curve) - 2) if len(curve) > 1 else 0
    share = place - left
    low, high = float(curve[left]), float(curve[min(left + 1, len(curve) - 1)])
    value = low * (1 - share) + high * share
    return min(max(value, min(low, high)), max(low, high))


def matches(match: str, tensor: str, role: str, layer: int | None) -> bool:
    """Whether an override's ``match`` means this tensor."""
    kind, _, rest = match.partition(":")
    if kind == "class" and rest:
        return role == rest
    if kind == "layer" and rest:
        first, _, last = rest.partition("-")
        return layer is not None and int(first) <= layer <= int(last or first)
    return _glob(match).match(tensor) is not None


def setting_sites(recipe: Recipe) -> Iterator[Site]:
    """Every setting written anywhere in the recipe, with its pointer, in document order."""
    for position, source in enumerate(recipe.sources):
        for name, value in source.settings.items():
            yield _site(recipe, ("sources", position, "settings", name), name, value, source.id)
    for position, step in enumerate(recipe.steps):
        for name, value in step.settings.items():
            yield Site(pointer_of("steps", position, name), position, step.method, name, value, None)
    for position, override in enumerate(recipe.overrides):
        for name, value in override.settings.items():
            yield _site(recipe, ("overrides", position, "settings", name), name, value, override.source)


def _site(recipe: Recipe, at: tuple[str | int, ...], name: str, value: Any, source: str | None) -> Site:
    method, dot, setting = name.rpartition(".")
    steps = [position for position, step in enumerate(recipe.steps) if step.method == method]
    return Site(pointer_of(*at), steps[0] if steps else None, method if dot else None, setting, value, source)


def _said(settings: dict[str, Any], method: str, knobs: Container[str] | None) -> Iterator[tuple[str, Any]]:
    for qualified in (False, True):
        for key, value in settings.items():
            owner, dot, name = key.rpartition(".")
            if bool(dot) != qualified or (dot and owner != method) or name == "weight":
                continue
            if knobs is None or name in knobs:
                yield name, value


def _set_one(settings: dict[str, Any], name: str, position: int, count: int, value: Any) -> None:
    before = settings.get(name)
    values = list(before) if isinstance(before, tuple) else [before] * count
    values[position] = value
    settings[name] = tuple(values)


def _matching(tensor: str, role: str, layer: int | None, recipe: Recipe) -> Iterator[Override]:
    return (override for override in recipe.overrides if matches(override.match, tensor, role, layer))


@lru_cache(maxsize=1024)
def _glob(match: str) -> re.Pattern[str]:
    return re.compile(translate(match))
