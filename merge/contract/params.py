"""Settings of a method: one small frozen class of knobs, from which schema, checks and forms are derived."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from merge.catalog import problems
from merge.errors import SettingInvalid

T = TypeVar("T")
_JSON_TYPES: dict[type, str] = {float: "number", int: "integer", bool: "boolean", str: "string"}
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def knob(
    default: Any,
    about: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    by_depth: bool = False,
    by_source: bool = False,
) -> Any:
    """Declares one setting inside a ``@params`` class.

    ``by_depth`` allows a list in the recipe, interpolated over the layers. ``by_source`` allows each source
    its own value; a ``combine`` then annotates the field ``tuple[float, ...]`` and gets one value a source, a
    ``prepare`` annotates it ``float`` and gets the value of the source at hand. Choices are annotated
    ``Literal[...]``.
    """
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    limits = {_BOUNDS[key]: value for key, value in bounds.items() if value is not None}
    metadata = {"about": about, "limits": limits, "by_depth": by_depth, "by_source": by_source}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(knob,))
def params(cls: type[T]) -> type[T]:
    """Makes a class of knobs a frozen dataclass whose schema ``schema_of`` can tell."""
    made: type[T] = dataclasses.dataclass(frozen=True)(cls)
    schema_of(made)
    return made


def schema_of(cls: type) -> dict[str, Any]:
    """JSON schema of one value of every knob, as the method receives it.

    ``x-by-depth`` marks knobs that also accept a list in a recipe, ``x-by-source`` those that every source
    may set.
    """
    hints = _hints(cls)
    properties = {f.name: _property(f, hints[f.name]) for f in dataclasses.fields(cls)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Types of the knobs: texts are evaluated once, not for every tensor that settings are built for."""
    return get_type_hints(cls)


def _property(field: "dataclasses.Field[Any]", hint: Any) -> dict[str, Any]:
    meta = field.metadata
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        body: dict[str, Any] = {"type": "string", "enum": list(get_args(hint))}
    else:
        body = {"type": _JSON_TYPES[hint], **meta["limits"]}
    body |= {"default": field.default, "description": meta["about"]}
    return body | {f"x-{key.replace('_', '-')}": True for key in ("by_depth", "by_source") if meta[key]}


def build(cls: type[T], values: Mapping[str, Any], sources: int) -> T:
    """An instance of ``cls`` from resolved settings; knobs not named keep their default.

    A knob annotated as a tuple gets ``sources`` values: a single one is repeated. Raises ``SettingInvalid``
    naming the first setting that is unknown, of the wrong type or out of range.
    """
    schema = schema_of(cls)
    ready: dict[str, Any] = {}
    knobs: Any = cls
    for name, hint in _hints(knobs).items():
        value = values.get(name, schema["properties"][name]["default"])
        many = get_origin(hint) is tuple
        if many and not isinstance(value, tuple):
            value = (value,) * sources
        entries = value if many else (value,)
        for entry in entries:
            _refuse(problems(schema, {name: entry}))
        target = get_args(hint)[0] if many else hint
        cast = [float(entry) if target is float else entry for entry in entries]
        ready[name] = tuple(cast) if many else cast[0]
    _refuse(problems(schema, {name: None for name in values if name not in ready}))
    return cls(**types.MappingProxyType(ready))


def _refuse(found: list[tuple[str, str]]) -> None:
    if found:
        raise SettingInvalid(found[0][1])


@params
class NoParams:
    """For methods without a setting."""
