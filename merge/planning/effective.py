"""The plan's settings as people want to see them: by tensor class, with the least and the greatest."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from merge.catalog import MethodEntry
from merge.planning.outputs import OutputTensor


def by_class(outputs: Sequence[OutputTensor], steps: Sequence[MethodEntry]) -> Iterator[dict[str, Any]]:
    """One row for each class and policy: counts, models, weights and the settings of every step."""
    groups: dict[tuple[str, str], list[OutputTensor]] = {}
    for output in outputs:
        groups.setdefault((output.role, output.policy), []).append(output)
    for (role, policy), tensors in groups.items():
        row: dict[str, Any] = {
            "class": role,
            "policy": policy,
            "tensors": len(tensors),
            "parameters": sum(prod(output.shape) for output in tensors),
            "example": tensors[0].name,
            "models": list(dict.fromkeys(source.model for o in tensors for source in o.inputs)),
        }
        if policy == "method":
            row["weights"] = _spread([output.weights for output in tensors])
            row["steps"] = [_effective(entry, place, tensors) for place, entry in enumerate(steps)]
        yield row


def _effective(entry: MethodEntry, place: int, tensors: Sequence[OutputTensor]) -> dict[str, Any]:
    different = list({id(output.settings[place]): output.settings[place] for output in tensors}.values())
    settings = {}
    for name, known in entry.settings.items():
        found = [_filled(settings.get(name), known["default"]) for settings in different]
        settings[name] = _spread(found)
    return {"method": entry.name, "settings": settings}


def _filled(value: Any, default: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(default if entry is None else entry for entry in value)
    return default if value is None else value


def _spread(values: Sequence[Any]) -> Any:
    """One value where all are equal, else the least and the greatest."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return list(distinct[0]) if isinstance(distinct[0], tuple) else distinct[0]
    plain = sorted(
        distinct, key=lambda value: ("" if type(value) in (int, float) else str(type(value)), value)
    )
    return {"from": plain[0], "to": plain[-1]}
