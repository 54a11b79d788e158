"""JSON schema of a method's settings -> form fields, and what was typed into them -> plain values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_DIGITS = 19
"""Of a whole number that anything takes: 2**63 has so many. Python reads none with thousands of them."""


class Mistyped(Exception):
    """What was typed cannot be read as the setting's type. ``str(error)`` is a sentence for the page."""


@dataclass(frozen=True)
class Field:
    """One form field. ``control`` is ``number``, ``text`` or ``select``; ``value`` is what it shows."""

    name: str
    label: str
    control: str
    value: str
    about: str
    limits: str = ""
    options: tuple[str, ...] = ()
    minimum: str | None = None
    maximum: str | None = None
    whole: bool = False


def fields_of(schema: Mapping[str, Any], prefix: str, typed: Mapping[str, str]) -> list[Field]:
    """Fields for every property of ``schema``, named ``prefix + property``; ``typed`` is what was typed."""
    return [
        _field(name, known, prefix, typed.get(name, shown(known.get("default"))))
        for name, known in schema.get("properties", {}).items()
    ]


def values_of(schema: Mapping[str, Any], typed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What was typed as plain values, and a sentence for each property that cannot be read.

    Empty fields and values equal to the default are left out, so a recipe says only what differs.
    """
    values: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name, known in schema.get("properties", {}).items():
        text = typed.get(name, "").strip()
        if not text:
            continue
        try:
            value = read(known, text)
        except Mistyped as error:
            wrong[name] = str(error)
            continue
        if value != known.get("default"):
            values[name] = value
    return values, wrong


def read(known: Mapping[str, Any], text: str) -> Any:
    """One typed text as a value of the property ``known``; several numbers make a depth curve."""
    kind = known.get("type")
    if kind in ("number", "integer"):
        if known.get("x-by-depth"):
            return read_curve(text, whole=kind == "integer")
        return _number(text, whole=kind == "integer")
    if kind == "boolean":
        if text not in ("true", "false"):
            raise Mistyped("Choose true or false.")
        return text == "true"
    return text


def whole_number(text: str) -> int:
    """A whole number from 0 up, as it is typed."""
    if not text.isascii() or not text.isdigit() or len(text) > MOST_DIGITS:
        raise Mistyped(f"{text[:40]!r} is not a whole number.")
    return int(text)


def read_curve(text: str, whole: bool = False) -> float | int | list[float | int]:
    """One number, or a list when several are typed, separated by commas."""
    parts = [part.strip() for part in text.strip().strip("[]").split(",")]
    numbers = [_number(part, whole) for part in parts]
    return numbers[0] if len(numbers) == 1 else numbers


def trimmed(text: str) -> str:
    """What was typed, without the space around it; of several lines the first keeps its indent."""
    text = text.replace("\r\n", "\n").rstrip().lstrip("\n")
    return text if "\n" in text else text.strip()


def shown(value: Any) -> str:
    """A value as it stands in a field."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return "" if value is None else str(value)


def limits_of(known: Mapping[str, Any]) -> str:
    """The range of a number in words, such as ``above 0, at most 1``."""
    words = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    return ", ".join(f"{word} {known[key]:g}" for key, word in words.items() if key in known)


def _field(name: str, known: Mapping[str, Any], prefix: str, value: str) -> Field:
    label = name.replace("_", " ").capitalize()
    kind = known.get("type")
    about = str(known.get("description", ""))
    options: tuple[str, ...] = ("true", "false") if kind == "boolean" else tuple(known.get("enum", ()))
    if options:
        return Field(prefix + name, label, "select", value, about, options=options)
    limits = limits_of(known)
    if known.get("x-by-depth"):
        limits = "; ".join(filter(None, [limits, "several, with commas: spread over the depth"]))
        return Field(prefix + name, label, "text", value, about, limits)
    if kind in ("number", "integer"):
        least = _end(known.get("minimum", known.get("exclusiveMinimum")))
        most = _end(known.get("maximum", known.get("exclusiveMaximum")))
        whole = kind == "integer"
        return Field(
            prefix + name, label, "number", value, about, limits, minimum=least, maximum=most, whole=whole
        )
    return Field(prefix + name, label, "text", value, about, limits)


def _end(bound: float | None) -> str | None:
    return None if bound is None else f"{bound:g}"


def _number(text: str, whole: bool) -> float | int:
    try:
        value: float | int = int(text) if len(text) <= MOST_DIGITS else float(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            raise Mistyped(f"{text!r} is not a number.") from None
    if not math.isfinite(value):
        raise Mistyped(f"{text[:40]!r} is not a finite number.")
    if whole and not isinstance(value, int):
        raise Mistyped(f"{text!r} is not a whole number.")
    return value
