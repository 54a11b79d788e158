"""The small pieces of mergekit's YAML: model references, filtered values, numbers written as text."""

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from merge.errors import Finding, MergekitUnsupported
from merge.recipe.document import pointer_of

_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse_reference(value: Any, *where: str | int, notes: list[str] | None = None) -> tuple[str, str | None]:
    """(model, adapter) of ``path_or_repo[@revision][+lora[@revision]]``, or of mergekit's map form."""
    if isinstance(value, Mapping):
        known = ("model", "lora", "override_architecture")
        extra = next(iter(key for key in value if key not in known), None)
        if extra is not None:
            refuse(*where, str(extra), unknown(str(extra), known, "key of a model reference"))
        if value.get("override_architecture") is not None and notes is not None:
            notes.append(
                "override_architecture is not needed and was left out: tensors are told by their names, and "
                "the result keeps the architectures of its config."
            )
        adapter = _path(value["lora"], *where, "lora") if value.get("lora") is not None else None
        return _path(value.get("model"), *where, "model"), adapter
    if not isinstance(value, str) or not value.strip():
        refuse(*where, "A model reference must be text: path_or_repo[@revision][+lora[@revision]].")
    parts = value.split("+")
    if len(parts) > 2:
        refuse(*where, f"{value!r} names more than one LoRA; give each its own model.")
    adapter = _path(parts[1], *where) if len(parts) == 2 else None
    return _path(parts[0], *where), adapter


def _path(value: Any, *where: str | int) -> str:
    if (
        isinstance(value, Mapping)
        and value.keys() <= {"path", "revision"}
        and isinstance(value.get("path"), str)
    ):
        revision = value.get("revision")
        return f"{value['path']}@{revision}" if revision else str(value["path"])
    if not isinstance(value, str) or not value.strip() or value.count("@") > 1:
        refuse(*where, f"{str(value)[:80]!r} is not a model reference: path_or_repo[@revision].")
    return value.strip()


def first_matches(value: Any, where: tuple[str | int, ...]) -> list[tuple[str | None, Any]]:
    """(glob, or None for every tensor, and value) of one setting; the first that fits wins."""
    if value is None:
        return []
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list) or not any(isinstance(item, Mapping) for item in listed):
        return [(None, value)]
    rules: list[tuple[str | None, Any]] = []
    for position, item in enumerate(listed):
        if not isinstance(item, Mapping) or "value" not in item or item.keys() - {"filter", "value"}:
            refuse(
                *where,
                position,
                "Each entry of such a list needs a value and may have a filter, nothing else.",
            )
        match = item.get("filter")
        if match is not None and not isinstance(match, str):
            refuse(*where, position, "filter", "filter must be text, a part of tensors' names; for several, "
                   "write one entry each.")  # fmt: skip
        whole = match is None or match == "*"
        rules.append(
            (
                None if whole else f"*{escape(str(match))}*",
                item["value"],
            )
        )
    return rules


def read_scalars(value: Any) -> Any:
    """Numbers written as text, such as "1e-3", as numbers, and words for true and false as those."""
    if isinstance(value, list):
        return [read_scalars(item) for item in value]
    if isinstance(value, str):
        if value.strip().lower() in _FLAGS:
            return _FLAGS[value.strip().lower()]
        try:
            return float(value)
        except ValueError:
            return value
    return value


def read_flags(value: Any) -> Any:
    """The same for what is true or false, which mergekit takes 1 and 0 for too."""
    read = read_scalars(value)
    if isinstance(read, list):
        return [read_flags(item) for item in read]
    return bool(read) if read in (0, 1) else read


def all_numbers(value: Any) -> bool:
    """Whether a value is a number, or a list of them."""
    if isinstance(value, list):
        return bool(value) and all(all_numbers(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def all_flags(value: Any) -> bool:
    """Whether a value is true or false, or a list of them."""
    if isinstance(value, list):
        return bool(value) and all(all_flags(item) for item in value)
    return isinstance(value, bool)


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """Sentence about a name that is not among ``known``, with the nearest that is."""
    known = list(known)
    near = get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"supported are {', '.join(known)}."
    return f"{name[:80]!r} is not a supported {what}; {hint}"


def refuse(*parts: str | int) -> NoReturn:
    """The last part is the sentence, those before it the place."""
    *where, message = parts
    raise MergekitUnsupported((Finding("error", "mergekit_unsupported", str(message), pointer_of(*where)),))


def escape(text: str) -> str:
    """A glob that matches exactly this text."""
    return re.sub("([*?[])", r"[\1]", text)
