"""The catalogue of methods, read from the committed files under ``catalogue_data``; loads neither torch nor
methods.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

FOLDER = Path(__file__).with_name("catalogue_data")
Granularity = Literal["tensor", "row", "element"]
"""What a method must be handed together, the coarsest first."""


def coarsest(granularities: Iterable[Granularity]) -> Granularity:
    """What a chain of methods must be run at."""
    return min(granularities, key=get_args(Granularity).index, default="element")


@dataclass(frozen=True)
class MethodEntry:
    """What is known of a method without its code; one JSON file each, written by ``python -m merge catalog``.

    ``needs`` holds ``base`` (bool or "optional"), ``sources`` ([least, most or null]), ``stats`` (list of
    what is measured first) and ``weight_sum`` (knob that, when true, divides by the sum of weights; true
    where the method always does; or null), ``limits`` (what settings demand of each other) and, where it has
    any, ``statistics`` (what is measured on data). ``schema`` is
    the JSON schema of one value of each setting; ``x-by-depth`` settings also take a list, ``x-by-source``
    ones may be set by every source. ``workspace`` is what a method on whole tensors says it holds (see
    ``merge.contract.method.Workspace``), ``lines`` what it measures of rows or columns (``Lines``),
    ``iteration`` what its steps take (``Iteration``), ``stacked`` what it decomposes as one. One that
    ``continues`` can go on from its own result.
    """

    name: str
    title: str
    kind: str
    family: str
    about: str
    paper: str | None
    version: int
    granularity: Granularity
    needs: dict[str, Any]
    schema: dict[str, Any]
    classes: dict[str, str] = field(default_factory=dict)
    breaks: dict[str, str] = field(default_factory=dict)
    linear: bool = False
    workspace: list[float] = field(default_factory=list)
    lines: dict[str, Any] = field(default_factory=dict)
    iteration: dict[str, Any] = field(default_factory=dict)
    stacked: Literal["rows", "columns"] | None = None
    continues: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON form, keys in declaration order."""
        return dict(self.__dict__)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Schema of every setting by name."""
        properties: dict[str, dict[str, Any]] = self.schema["properties"]
        return properties

    @property
    def statistics(self) -> list[dict[str, Any]]:
        """What it needs measured on data, each the fields of a ``Statistic``."""
        statistics: list[dict[str, Any]] = self.needs.get("statistics", [])
        return statistics

    @property
    def limits(self) -> list[dict[str, Any]]:
        """What settings demand of each other, each the fields of a ``Limit``."""
        limits: list[dict[str, Any]] = self.needs.get("limits", [])
        return limits

    @property
    def cautions(self) -> list[dict[str, Any]]:
        """What the plan warns of, each the fields of a ``Caution``."""
        cautions: list[dict[str, Any]] = self.needs.get("cautions", [])
        return cautions

    @property
    def ends(self) -> dict[str, Any] | None:
        """Settings that count layers, the fields of an ``Ends``; ``None`` where it has none."""
        ends: dict[str, Any] | None = self.needs.get("ends")
        return ends

    def problems(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(setting, sentence) for everything wrong with settings as a recipe writes them: lists are depth
        curves, and of a list of true and false one is picked.
        """
        found = []
        for name, value in values.items():
            known = self.settings.get(name, {})
            listed = known.get("x-by-depth") or known.get("type") == "boolean"
            if isinstance(value, list) and listed:
                wrong = [p for entry in value for p in problems(self.schema, {name: entry})][:1]
                found += wrong if value else [(name, f"{name}: a curve over depth needs at least one value")]
            else:
                found += problems(self.schema, {name: value})
        return [(name, f"{self.name}: {sentence}") for name, sentence in found]


@cache
def catalogue() -> dict[str, MethodEntry]:
    """Every method by name, in alphabetical order."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.json"))]
    return {entry.name: entry for entry in (MethodEntry(**json.loads(text)) for text in texts)}


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the names most like ``name``, else what there is to choose from."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(map(repr, close)) + "?"
    return f"; known are {', '.join(names)}" if names else "; it has no settings"


def problems(schema: Mapping[str, Any], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(setting, sentence) for every unknown setting, wrong type or value out of range."""
    found = []
    for name, value in values.items():
        known = schema["properties"].get(name)
        if known is None:
            found.append((name, f"unknown setting {name!r}{nearest(name, schema['properties'])}"))
        elif not _fits(known, value):
            found.append((name, f"{name} must be {_wanted(known)}, not {_shown(value)}"))
    return found


def _fits(known: Mapping[str, Any], value: Any) -> bool:
    kind = known["type"]
    if kind in ("number", "integer"):
        if isinstance(value, bool) or not isinstance(value, int if kind == "integer" else (int, float)):
            return False
        return math.isfinite(value) and (
            value > known.get("exclusiveMinimum", -math.inf)
            and value >= known.get("minimum", -math.inf)
            and value < known.get("exclusiveMaximum", math.inf)
            and value <= known.get("maximum", math.inf)
        )
    if kind == "boolean":
        return isinstance(value, bool)
    return isinstance(value, str) and value in known.get("enum", [value])


def _wanted(known: Mapping[str, Any]) -> str:
    if "enum" in known:
        return "one of " + ", ".join(known["enum"])
    words = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    limits = [f"{word} {known[key]:g}" for key, word in words.items() if key in known]
    kind = {"number": "a number", "integer": "a whole number", "boolean": "true or false", "string": "a text"}
    return " ".join([kind[known["type"]], " and ".join(limits)]).strip()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
