"""Orders and recipes as the texts of a form, and as YAML what has no field: nothing is lost. Pure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from api.dashboard.forms import Mistyped, fields_of, shown
from merge.catalog import catalogue
from merge.errors import MergeError
from merge.recipe.document import dump_document, load_document
from merge.recipe.parts import OUTPUT_DTYPES
from merge.recipe.recipe import Recipe

DTYPES = {
    "": "as the first model",
    **{name: name for name in OUTPUT_DTYPES},
    "input": "each tensor as it is",
}
SHOWN = {"sources": 3, "steps": 3, "dtype": 2, "calibration": 2}
"""How deep a recipe is told apart where a form has fields for some of it."""
_HUB_FILE = re.compile(r"(?P<hub>[^\s:]+/[^\s:]+):(?P<file>[^\s:]+)")


def data_at(where: str) -> dict[str, str]:
    """A file as it is typed: an upload, ``org/dataset@revision:file``, or a path."""
    if where.startswith("ds_"):
        return {"dataset": where}
    if not where.startswith(("/", "./", "~")) and (found := _HUB_FILE.fullmatch(where)):
        return found.groupdict()
    return {"path": where}


def typed_data(data: Mapping[str, Any]) -> str:
    """A file as it would be typed."""
    return (
        f"{data['hub']}:{data['file']}" if data.get("hub") else data.get("dataset") or data.get("path") or ""
    )


def typed_set(wanted: Mapping[str, Any]) -> dict[str, str]:
    """An evaluation set as it is typed."""
    row = {"name": wanted["name"], "kind": wanted["kind"], "where": typed_data(wanted.get("data") or {})}
    if wanted.get("settings"):
        row["settings"] = inline(wanted["settings"])
    return row | ({"limit": str(wanted["limit"])} if wanted.get("limit") else {})


def inline(values: Mapping[str, Any]) -> str:
    """Values on one line: ``name: value, name: value``."""
    return dump_document(values, flow=True, width=10_000).strip()[1:-1]


def typed_recipe(recipe: Recipe) -> dict[str, Any]:
    """The texts of a form's fields for a recipe, as far as it has fields."""
    told = recipe.model_dump(mode="json", exclude_defaults=True)
    data = told.get("calibration", {}).get("data", "")
    return {
        "base": recipe.base or "",
        "sources": [
            {name: shown(each[name]) for name in ("model", "weight", "adapter") if name in each}
            for each in told["sources"]
        ],
        "steps": [_typed_step(each) for each in told["steps"]],
        "dtype": told.get("dtype", {}).get("output", ""),
        "seed": shown(told.get("seed")),
        "calibration": typed_data(data) if isinstance(data, Mapping) else "",
    }


def _typed_step(step: Mapping[str, Any]) -> dict[str, str]:
    entry = catalogue().get(step["method"])
    fields = {each.name: each for each in fields_of(entry.schema, "", {})} if entry else {}
    row = {"method": step["method"]}
    for name, value in step.items():
        field = fields.get(name)
        if field and (not field.options or shown(value) in field.options):
            row[name] = shown(value)
    return row


def not_shown(recipe: Recipe, by_form: Recipe) -> list[str]:
    """Where the recipe that a form makes is another one, such as ``sources.0.id`` or ``result``."""
    different = (at[: SHOWN.get(at[0], 1)] for at in _differences(_spelt_out(recipe), _spelt_out(by_form)))
    return [".".join(at) for at in dict.fromkeys(different)]


def _spelt_out(recipe: Recipe) -> dict[str, Any]:
    """A recipe with every default, those of its steps' settings too."""
    told = recipe.model_dump(mode="json")
    for step in told["steps"]:
        entry = catalogue().get(step["method"])
        known = entry.schema.get("properties", {}) if entry else {}
        step |= {name: each["default"] for name, each in known.items() if "default" in each} | step
    return told


def _differences(one: Any, other: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            yield from _differences(one.get(name), other.get(name), (*at, name))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from _differences(mine, theirs, (*at, str(place)))
    elif one != other:
        yield at


def beyond(whole: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What ``whole`` says and ``told`` does not, or says otherwise."""
    found = {}
    for name, value in whole.items():
        have = told.get(name)
        if isinstance(value, Mapping) and isinstance(have, Mapping):
            if inside := beyond(value, have):
                found[name] = inside
        elif name not in told or value != have:
            found[name] = value
    return found


def with_rest(told: Mapping[str, Any], rest: str) -> dict[str, Any]:
    """An order with what was typed besides its fields; raises ``Mistyped`` where that is no YAML, or says
    again what has a field.
    """
    try:
        return _joined(told, load_document(rest, "yaml")) if rest else dict(told)
    except MergeError as error:
        raise Mistyped(f"Write name: value, one a line. {error}") from None


def _joined(told: Mapping[str, Any], more: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    made = dict(told)
    for name, value in more.items():
        have = told.get(name)
        if isinstance(value, Mapping) and isinstance(have, Mapping):
            made[name] = _joined(have, value, f"{at}{name}.")
        elif name in told:
            raise Mistyped(f"{at}{name} has a field of its own; leave it out here.")
        else:
            made[name] = value
    return made
