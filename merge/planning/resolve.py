"""From a recipe to plain numbers for one tensor: curves, overrides and per-source values are resolved.

For one setting of one step, weakest first: the step, the slice, the source, the source in the slice, then
each matching override in order. A name written ``method.setting`` speaks to that step only and wins over the
bare name at the same place.
"""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Any

from merge.arch.roles import layer_of
from merge.recipe.document import pointer_of
from merge.recipe.parts import Curve, Override, Role, Slice, Step
from merge.recipe.recipe import Recipe


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


@dataclass(frozen=True)
class Voice:
    """One source in one section of the result: its weight there and its own settings, weakest first."""

    id: str
    weight: Curve
    settings: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Section:
    """What a recipe says about one part of the result: all of it, or one slice."""

    voices: tuple[Voice, ...]
    settings: Mapping[str, Any]
    overrides: tuple[Override, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """One tensor of the result, for which settings are wanted. ``depth`` is 0 to 1 (see ``Towers.depth``).

    ``own`` are the names of this tensor in the sources, where they are others (in slices).
    """

    tensor: str
    role: Role
    layer: int | None
    depth: float
    own: tuple[str, ...] = ()


def whole(recipe: Recipe) -> Section:
    """The one section of a recipe without slices."""
    voices = tuple(Voice(source.id, source.weight, (source.settings,)) for source in recipe.sources)
    return Section(voices, {}, recipe.overrides)


def section_of(part: Slice, recipe: Recipe) -> Section:
    """What holds in one slice: the recipe's, and what the slice says of its own on top of it."""
    sources = {source.id: source for source in recipe.sources}
    voices = tuple(
        Voice(
            each.id,
            sources[each.id].weight if each.weight is None else each.weight,
            (sources[each.id].settings, each.settings),
        )
        for each in part.sources
    )
    return Section(voices, part.settings, (*recipe.overrides, *part.overrides))


def settings_for(
    spot: Spot, step: Step, section: Section, *, knobs: Container[str] | None = None
) -> dict[str, Any]:
    """Plain values of the step's settings for one tensor; a tuple in source order where sources may differ.

    ``knobs`` are the settings this step's method has: what sources and overrides say about others is left
    out. In a tuple ``None`` means that nothing was said: the method's default.
    """
    depth, count = spot.depth, len(section.voices)
    settings = {name: at_depth(value, depth) for name, value in step.settings.items()}
    for name, value in _said(section.settings, step.method, knobs):
        settings[name] = at_depth(value, depth)
    for position, voice in enumerate(section.voices):
        for own in voice.settings:
            for name, value in _said(own, step.method, knobs):
                _set_one(settings, name, position, count, at_depth(value, depth))
    for _, override, positions in matching(spot, section):
        for name, value in _said(override.settings, step.method, knobs):
            if positions is None:
                settings[name] = at_depth(value, depth)
            for position in positions or ():
                _set_one(settings, name, position, count, at_depth(value, depth))
    return settings


def weights_for(spot: Spot, section: Section) -> tuple[float, ...]:
    """Each source's weight for one tensor, in source order."""
    weights = [float(at_depth(voice.weight, spot.depth)) for voice in section.voices]
    for _, override, positions in matching(spot, section):
        if "weight" not in override.settings:
            continue
        value = float(at_depth(override.settings["weight"], spot.depth))
        for position in range(len(weights)) if positions is None else positions:
            weights[position] = value
    return tuple(weights)


def policy_for(spot: Spot, section: Section, classes: Mapping[Role, str]) -> str | None:
    """The policy the recipe asks for: the last matching override's, else its class's, else ``None``."""
    policy = next((chosen for of, chosen in classes.items() if of == spot.role), None)
    for _, override, _ in matching(spot, section):
        policy = override.policy or policy
    return policy


def matching(spot: Spot, section: Section) -> Iterator[tuple[int, Override, tuple[int, ...] | None]]:
    """(position, override, the sources it speaks of, or ``None`` for all) of those that mean this tensor.

    An override of one source is matched against the name and layer of that source's own tensor.
    """
    for position, override in enumerate(section.overrides):
        if override.source is None:
            if matches(override.match, spot.tensor, spot.role, spot.layer):
                yield position, override, None
            continue
        meant = tuple(
            place
            for place, voice in enumerate(section.voices)
            if voice.id == override.source and _matches_own(override.match, spot, place)
        )
        if meant:
            yield position, override, meant


def _matches_own(match: str, spot: Spot, place: int) -> bool:
    if not spot.own or spot.own[place] == spot.tensor:
        return matches(match, spot.tensor, spot.role, spot.layer)
    return matches(match, spot.own[place], spot.role, layer_of(spot.own[place]))


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


def matches(match: str, tensor: str, role: Role, layer: int | None) -> bool:
    """Whether an override's ``match`` means this tensor."""
    kind, _, rest = match.partition(":")
    if kind == "class" and rest:
        return role == rest
    if kind == "layer" and rest:
        first, _, last = rest.partition("-")
        return layer is not None and int(first) <= layer <= int(last or first)
    return _glob(match).match(tensor) is not None


def setting_sites(recipe: Recipe) -> Iterator[Site]:
    """Every setting written anywhere in the recipe, with its pointer."""
    for position, source in enumerate(recipe.sources):
        yield from _sites(recipe, ("sources", position), source.settings, source.id)
    for position, step in enumerate(recipe.steps):
        for name, value in step.settings.items():
            yield Site(pointer_of("steps", position, name), position, step.method, name, value, None)
    for at, part in recipe.sections():
        yield from _sites(recipe, at, part.settings, None)
        for position, each in enumerate(part.sources):
            yield from _sites(recipe, (*at, "sources", position), each.settings, each.id)
    for at, override in recipe.placed_overrides():
        yield from _sites(recipe, at, override.settings, override.source)


def _sites(
    recipe: Recipe, at: tuple[str | int, ...], settings: Mapping[str, Any], source: str | None
) -> Iterator[Site]:
    for name, value in settings.items():
        yield _site(recipe, (*at, "settings", name), name, value, source)


def _site(recipe: Recipe, at: tuple[str | int, ...], name: str, value: Any, source: str | None) -> Site:
    method, dot, setting = name.rpartition(".")
    steps = [position for position, step in enumerate(recipe.steps) if step.method == method]
    return Site(pointer_of(*at), steps[0] if steps else None, method if dot else None, setting, value, source)


def _said(
    settings: Mapping[str, Any], method: str, knobs: Container[str] | None
) -> Iterator[tuple[str, Any]]:
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


@lru_cache(maxsize=1024)
def _glob(match: str) -> re.Pattern[str]:
    return re.compile(translate(match))
