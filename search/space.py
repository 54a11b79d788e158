"""What may vary in a recipe: numbers, curves over the depth, choices, and which sources and steps take part.

A *point* is plain JSON: the name of each dimension with its value. ``place`` writes a point into a recipe.
Loads without numpy, so that a search can be checked where it is ordered.
"""

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from search.errors import SpaceInvalid

Point = dict[str, Any]
Path = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
MOST_DIMENSIONS = 64
_STAGE = re.compile(r"stages\.(?P<name>[^.]+)\.(?P<rest>.+)")
_WHOLE = re.compile(r"(stages\.[^.]+\.)?(sources|steps)\.[^.]*")
"""A source or a step as a whole."""


class Part(BaseModel):
    """Part of a search: unknown fields are refused, nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Dimension(Part):
    """One thing that varies.

    ``at`` is where in the recipe: ``sources.<id>.weight``, ``sources.<id>.settings.<setting>``,
    ``steps.<method or number>.<setting>``, ``overrides.<number>.settings.<setting>``. Several places get the
    same value. ``sources.<id>`` or ``steps.<method>`` alone is a choice between being there and not.
    ``stages.<name>.`` before any of these means that stage's.
    Numbers lie between ``low`` and ``high``; on a logarithmic scale with ``log``; ``points`` of them make a
    curve over the depth. ``values`` are choices in order. ``where`` (a glob on tensors, ``class:norm``,
    ``layer:0-7``) limits a step's setting to these tensors. ``start`` is where methods begin that begin
    somewhere.
    """

    at: Path | Annotated[tuple[Path, ...], Field(min_length=1, max_length=64)]
    low: float | None = None
    high: float | None = None
    log: bool = False
    points: int | None = Field(None, ge=2, le=128)
    values: Annotated[tuple[Any, ...], Field(min_length=2, max_length=1024)] | None = None
    where: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    start: Any = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        numeric = self.low is not None or self.high is not None
        if numeric and (self.low is None or self.high is None or not self.low < self.high):
            raise ValueError("low must be below high, and both be given")
        if numeric and self.values is not None:
            raise ValueError("give either low and high, or values")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs low above 0")
        if self.points and not numeric:
            raise ValueError("points of a curve need low and high")
        if not numeric and self.values is None and not self.switches:
            raise ValueError("give low and high, or values; only a source or a step as a whole needs neither")
        if self.switches and (numeric or self.values is not None):
            raise ValueError("a source or a step as a whole is there or not: it has no low, high or values")
        if self.start is not None and not self.holds(self.start):
            raise ValueError("start is not a value of this dimension")
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """Every place in the recipe that gets the value."""
        return (self.at,) if isinstance(self.at, str) else self.at

    @property
    def switches(self) -> bool:
        """Whether it takes whole sources or steps in and out."""
        return all(_WHOLE.fullmatch(place) for place in self.places)

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """What there is to choose from; ``None`` for numbers."""
        return (False, True) if self.switches else self.values

    @property
    def width(self) -> int:
        """How many numbers of a vector stand for it."""
        return self.points or 1

    def holds(self, value: Any) -> bool:
        """Whether it is a value of this dimension."""
        if self.choices is not None:
            return value in self.choices
        numbers = value if self.points else [value]
        if not isinstance(numbers, list | tuple) or len(numbers) != self.width:
            return False
        low, high = self._bounds
        return all(
            isinstance(each, int | float) and not isinstance(each, bool) and low <= each <= high
            for each in numbers
        )

    @property
    def _bounds(self) -> tuple[float, float]:
        assert self.low is not None and self.high is not None
        return self.low, self.high

    def value(self, units: "list[float]") -> Any:
        """The value that numbers between 0 and 1 stand for; what lies outside counts as the nearest end."""
        if self.choices is not None:
            count = len(self.choices)
            return self.choices[min(count - 1, max(0, math.floor(units[0] * count)))]
        found = [self._number(unit) for unit in units]
        return found if self.points else found[0]

    def units(self, value: Any) -> list[float]:
        """Numbers between 0 and 1 that stand for a value: what ``value`` turns back into it."""
        if self.choices is not None:
            return [(self.choices.index(value) + 0.5) / len(self.choices)]
        low, high = self._bounds
        numbers = value if self.points else [value]
        if self.log:
            return [math.log(each / low) / math.log(high / low) for each in numbers]
        return [(each - low) / (high - low) for each in numbers]

    def _number(self, unit: float) -> float:
        low, high = self._bounds
        unit = min(1.0, max(0.0, unit))
        number = low * (high / low) ** unit if self.log else low + unit * (high - low)
        return min(high, max(low, number))

    @property
    def first(self) -> Any:
        """Where a method begins: ``start``, else the middle; sources and steps begin as part of it."""
        if self.start is not None:
            return self.start
        return True if self.switches else self.value([0.5] * self.width)


class Space(Part):
    """All dimensions by name."""

    dimensions: Annotated[dict[Name, Dimension], Field(min_length=1, max_length=MOST_DIMENSIONS)]

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return sum(each.width for each in self.dimensions.values())

    @property
    def numeric(self) -> bool:
        """Whether every dimension is numbers."""
        return all(each.choices is None for each in self.dimensions.values())

    @property
    def first(self) -> Point:
        """Where methods begin that begin somewhere."""
        return {name: each.first for name, each in self.dimensions.items()}

    @property
    def corners(self) -> tuple[Point, Point]:
        """All lowest values, and all highest."""
        low, high = (
            {name: each.value([unit] * each.width) for name, each in self.dimensions.items()}
            for unit in (0.0, 1.0)
        )
        return low, high

    @property
    def samples(self) -> tuple[Point, ...]:
        """Points in which every number is at both of its ends, and every choice is there."""
        low, high = self.corners
        choices = {name: each.choices for name, each in self.dimensions.items() if each.choices is not None}
        most = max((len(each) for each in choices.values()), default=0)
        between = range(1, most - 1)
        others = [low | {name: c[min(at, len(c) - 1)] for name, c in choices.items()} for at in between]
        return (low, high, *others)

    def point(self, vector: "list[float] | tuple[float, ...]") -> Point:
        """The point that a vector of numbers between 0 and 1 stands for."""
        return {
            name: each.value(list(vector[begin : begin + each.width])) for name, each, begin in self._laid()
        }

    def vector(self, point: Mapping[str, Any]) -> list[float]:
        """The vector that stands for a point."""
        return [unit for name, each, _ in self._laid() for unit in each.units(point[name])]

    def _laid(self) -> Iterator[tuple[str, Dimension, int]]:
        begin = 0
        for name, each in self.dimensions.items():
            yield name, each, begin
            begin += each.width

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Whether it is a point of this space."""
        return set(point) == set(self.dimensions) and all(
            each.holds(point[name]) for name, each in self.dimensions.items()
        )

    def own(self, recipe: Mapping[str, Any]) -> Point:
        """The point at which a recipe stands; empty where a setting of its own is not in this space, holds
        for some tensors only, or is not said.
        """
        document, point = copy.deepcopy(dict(recipe)), Point()
        for name, dimension in self.dimensions.items():
            places = [_find(document, text, f"/space/{name}/at") for text in dimension.places]
            said = [True if dimension.switches else each.body.get(each.key) for each in places]
            value = said[0]
            if dimension.points and isinstance(value, int | float):
                value = [value] * dimension.points
            if dimension.where or any(each != said[0] for each in said) or not dimension.holds(value):
                return {}
            point[name] = value
        return point

    def place(self, recipe: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe with the values of a point, or as it is at the empty one. ``recipe`` is written out:
        sources have ids. Where nothing is left to merge, it is one that no merge takes.

        Raises ``SpaceInvalid`` where the recipe does not have the place.
        """
        document = copy.deepcopy(dict(recipe))
        gone: list[_Place] = []
        for name, dimension in self.dimensions.items() if point else ():
            for text in dimension.places:
                found = _find(document, text, f"/space/{name}/at")
                if dimension.switches:
                    gone += [] if point[name] else [found]
                elif dimension.where:
                    _limited(found, dimension.where, point[name])
                else:
                    found.body[found.key] = _plain(point[name])
        _take_out(gone)
        return document


@dataclass(frozen=True)
class _Place:
    """``key`` of ``body``, which is, or is in, a ``part`` of what ``key_of`` lists in ``recipe``."""

    recipe: dict[str, Any]
    key_of: str
    part: dict[str, Any]
    body: dict[str, Any]
    key: str


def _take_out(gone: Iterable[_Place]) -> None:
    for each in gone:
        each.recipe[each.key_of] = [part for part in each.recipe[each.key_of] if part is not each.part]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _find(document: dict[str, Any], text: str, pointer: str) -> _Place:
    recipe, own = document, text
    if staged := _STAGE.fullmatch(text):
        recipe, own = _stage(document, staged["name"], text, pointer), staged["rest"]
    group, _, rest = own.partition(".")
    name, _, tail = rest.partition(".")
    if group not in ("sources", "steps", "overrides") or not name:
        raise SpaceInvalid(
            f"{text!r} is no place in a recipe; write sources.<id>.weight, steps.<method>.<setting> "
            "or overrides.<number>.settings.<setting>, in a stage with stages.<name>. before it",
            pointer,
        )
    part = _part(recipe, group, name, text, pointer)
    if not tail and group != "overrides":
        return _Place(recipe, group, part, part, "")
    if group == "steps":
        return _Place(recipe, group, part, part, tail)
    if group == "sources" and tail == "weight":
        return _Place(recipe, group, part, part, "weight")
    if tail.startswith("settings.") and tail != "settings.":
        return _Place(recipe, group, part, part.setdefault("settings", {}), tail.removeprefix("settings."))
    raise SpaceInvalid(f"{text!r}: write {group}.{name}.settings.<setting> to vary a setting there", pointer)


def _stage(document: dict[str, Any], name: str, text: str, pointer: str) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = document.get("stages") or {}
    if name not in stages:
        known = ", ".join(stages) or "none"
        raise SpaceInvalid(
            f"{text!r}: {name!r} among the stages is not there; the recipe has {known}", pointer
        )
    return stages[name]


def _part(document: dict[str, Any], group: str, name: str, text: str, pointer: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = list(document.get(group) or ())
    key = {"sources": "id", "steps": "method"}.get(group)
    found = [part for part in parts if key and part.get(key) == name]
    if not found and name.isdecimal() and int(name) < len(parts):  # an id may be a number too
        return parts[int(name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(str(part.get(key, at)) if key else str(at) for at, part in enumerate(parts)) or "none"
    what = "is there more than once: write its number" if found else f"is not there; the recipe has {known}"
    raise SpaceInvalid(f"{text!r}: {name!r} among the {group} {what}", pointer)


def _limited(place: _Place, where: str, value: Any) -> None:
    if place.key_of != "steps":
        raise SpaceInvalid("where limits a step's setting: at must be steps.<method>.<setting>", "/space")
    name = f"{place.part['method']}.{place.key}"
    place.recipe.setdefault("overrides", []).append({"match": where, "settings": {name: _plain(value)}})
