"""What pydantic finds wrong with a recipe, in the words of whoever wrote it."""

import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic_core import ErrorDetails

from merge.errors import Finding
from merge.recipe.calibration import DATA_TAGS
from merge.recipe.document import pointer_of
from merge.recipe.parts import nearest_name
from merge.recipe.results import FORM_TAGS
from merge.recipe.stages import within
from merge.recipe.tokenizer import RULE_TAGS

Fields = Mapping[tuple[str, ...], tuple[str, ...]]
"""The names of the fields that there are, by where they are."""
Where = tuple[str | int, ...]
_TAGS = ("[key]", *RULE_TAGS, *FORM_TAGS, *DATA_TAGS)
_BESIDE = ("output", "evaluate", "webhook", "hub_credential", "kind", "search")
_ELSEWHERE = {
    "method": "methods stand in steps: [{method: ...}].",
    "models": "did you mean sources?",
    "recipe": "this is an order to the service; a recipe is what its field recipe holds.",
    **dict.fromkeys(_BESIDE, "it belongs to the order to the service, beside the recipe."),
}
"""What is meant by fields that others have, or that stand beside a recipe."""


def findings_of(errors: Sequence[ErrorDetails], fields: Fields) -> Iterator[Finding]:
    """One of each error that is no consequence of another."""
    for details in errors:
        loc = details["loc"]
        consequence = any(
            other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in errors
        )
        if not (details["type"] == "too_short" and consequence):
            yield _finding(details, fields)


def _finding(details: ErrorDetails, fields: Fields) -> Finding:
    where = tuple(part for part in details["loc"] if part not in _TAGS)
    if where[:1] == ("stages",) and len(where) > 2:
        return within(str(where[1]), [_finding({**details, "loc": details["loc"][2:]}, fields)])[0]
    if where[:1] == ("steps",) and where[2:3] == ("settings",):
        where = where[:2] + where[3:]
    is_key = "[key]" in details["loc"] and where[0] not in ("tokenizer", "stages")
    if details["type"] == "extra_forbidden" or is_key:
        code, message = "unknown_field", _unknown(details, where, fields)
    elif details["type"] == "missing":
        code, message = "field_missing", f"The field {_name(where)} is missing."
    else:
        code, message = "field_invalid", _invalid(details, where, fields)
    return Finding("error", code, message, pointer_of(*where))


def _name(where: Where) -> str:
    return str(where[-1]) if where else "recipe"


def _parent(where: Where) -> tuple[str, ...]:
    parent = tuple(part for part in where[:-1] if isinstance(part, str))
    return (parent[2:] or parent[:1]) if parent[:1] == ("modules",) else parent


def _unknown(details: ErrorDetails, where: Where, fields: Fields) -> str:
    name, parent = _name(where), _parent(where)
    if parent[:2] == ("tokenizer", "tokens"):
        parent = parent[:2]
    if parent == ("result",):
        parent = ("result", str(details["loc"][1]))
    known = nearest_name(name, fields.get(parent, ()), "known are")
    return f"There is no field {name[:80]!r} here; {(not parent and _ELSEWHERE.get(name)) or known}"


def _invalid(details: ErrorDetails, where: Where, fields: Fields) -> str:
    kind, said, given = details["type"], details["msg"].removesuffix("."), str(details["input"])
    at, name = pointer_of(*where), _name(where)
    if kind == "too_short":
        return f"{at} must not be empty."
    if kind == "tuple_type":
        return f"{at or 'The recipe'} must be a list: [...]."
    if kind in ("dict_type", "model_type"):
        known = ", ".join(fields.get((*_parent(where), name), ()))
        return f"{at or 'The recipe'} must be an object{known and f' of {known}'}: {{...}}."
    if kind == "string_pattern_mismatch" and name != "dataset":
        return f"{at} cannot be {given[:80]!r}: names are of small letters, digits, _ and -."
    if kind == "literal_error":
        hint = nearest_name(given, tuple(re.findall(r"'([^']+)'", said)), "valid are")
        return f"{at} cannot be {given[:80]!r}; {hint}"
    return f"{at or 'The recipe'}: {said}{'' if said.endswith('?') else '.'}"
