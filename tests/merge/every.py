"""Every method of the catalogue, a chain to run it in, and settings it accepts; for tests that walk all."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from hypothesis import strategies as st

from merge.contract.limits import conflicts
from merge.contract.method import Kind, Method, registered
from merge.contract.params import schema_of
from merge.methods import load

load()
ALL = [method for method in registered().values() if method.kind in tuple(Kind)]
METHODS = [method for method in ALL if not method.needs.factors]
ON_FACTORS = [method for method in ALL if method.needs.factors]
"""Those handed the factors of adapters, which have laws of their own (``laws/test_factors.py``)."""


def count_of(method: Method) -> int:
    """A number of sources it takes: three where it may."""
    least, most = method.needs.sources
    return max(least, min(3, most or 3))


def steps_of(method: Method, values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The shortest chain with this method in it."""
    if method.kind is Kind.PREPARE:
        return [(method.name, values), ("task_arithmetic", {})]
    return [(method.name, values)] if method.kind is Kind.COMBINE else [("linear", {}), (method.name, values)]


def values_of(method: Method) -> st.SearchStrategy[dict[str, Any]]:
    """Settings at the ends, in the middle and at the default of their ranges, as far as they go together."""
    properties = schema_of(method.params)["properties"]
    every = st.fixed_dictionaries({name: st.sampled_from(some(body)) for name, body in properties.items()})
    return every.filter(lambda values: fitting(method, values))


def fitting(method: Method, values: dict[str, Any]) -> bool:
    """Whether the settings respect the method's limits."""
    return not list(conflicts(method.needs.limits, defaults_of(method), values))


def defaults_of(method: Method) -> dict[str, Any]:
    """The default of every setting."""
    return {name: body["default"] for name, body in schema_of(method.params)["properties"].items()}


def some(body: dict[str, Any]) -> list[Any]:
    """A few values of one setting, the default first."""
    if "enum" in body:
        return sorted(body["enum"], key=lambda choice: choice != body["default"])
    if body["type"] == "boolean":
        return [body["default"], not body["default"]]
    low = body.get("minimum", body.get("exclusiveMinimum", -2.0) + 0.05)
    high = body.get("maximum", body.get("exclusiveMaximum", low + 3.0) - 0.01)
    if body["type"] == "integer":
        return [body["default"], int(low), int(low + high) // 2, int(high)]
    return [body["default"], low, (low + high) / 2, high]


def moved(method: Method) -> dict[str, Any]:
    """Every setting off its default where the limits allow it: choices first, then as many numbers as may."""
    properties = schema_of(method.params)["properties"]
    others = {name: some(body)[1:] for name, body in properties.items()}
    numbers = [name for name, body in properties.items() if body["type"] in ("number", "integer")]
    choices = {name: values[0] for name, values in others.items() if name not in numbers}
    options = product(*([*reversed(others[name][:-1]), properties[name]["default"]] for name in numbers))
    every: Iterator[dict[str, Any]] = (
        choices | dict(zip(numbers, values, strict=True)) for values in options
    )
    return next(values for values in every if fitting(method, values))


def brief(method: Method) -> dict[str, Any]:
    """Settings with which a method that iterates ends soon, for what holds after any number of steps."""
    return {"steps": 10} if "steps" in schema_of(method.params)["properties"] else {}
