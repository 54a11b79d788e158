"""Fields of a form follow a method's schema; what is typed comes back as plain values."""

import pytest

from api.dashboard.forms import Mistyped, fields_of, read, read_curve, values_of
from merge.catalog import catalogue

SCHEMA = {
    "properties": {
        "density": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "default": 0.5,
            "description": "Share kept.",
            "x-by-depth": True,
        },
        "rounds": {"type": "integer", "minimum": 1, "default": 3, "description": "How often."},
        "mode": {"type": "string", "enum": ["sum", "mean"], "default": "sum", "description": "How."},
        "exact": {"type": "boolean", "default": True, "description": "Whether."},
    }
}


def test_each_property_becomes_the_control_that_fits_it() -> None:
    density, rounds, mode, exact = fields_of(SCHEMA, "steps-0-", {"rounds": "7"})
    assert (density.control, density.name, density.value) == ("text", "steps-0-density", "0.5")
    assert density.limits.startswith("above 0, at most 1")
    assert (rounds.control, rounds.value, rounds.minimum, rounds.whole) == ("number", "7", "1", True)
    assert (mode.control, mode.options) == ("select", ("sum", "mean"))
    assert (exact.options, exact.value) == (("true", "false"), "true")


def test_every_setting_of_every_method_has_a_field_that_reads_back_its_default() -> None:
    for entry in catalogue().values():
        fields = fields_of(entry.schema, "", {})
        assert [each.name for each in fields] == list(entry.settings)
        for each in fields:
            assert read(entry.settings[each.name], each.value) == entry.settings[each.name]["default"]


def test_what_equals_the_default_or_is_empty_is_left_out() -> None:
    typed = {"density": "0.5", "rounds": "", "mode": "mean", "exact": "false", "other": "1"}
    assert values_of(SCHEMA, typed) == ({"mode": "mean", "exact": False}, {})


def test_several_numbers_are_a_curve_over_depth() -> None:
    assert values_of(SCHEMA, {"density": "0.2, 0.8"})[0] == {"density": [0.2, 0.8]}
    assert read_curve("[1, 2]") == [1, 2]


@pytest.mark.parametrize(
    "typed", [{"rounds": "1.5"}, {"density": "half"}, {"density": "0.2,"}, {"exact": "maybe"}]
)
def test_what_cannot_be_read_is_said_at_its_field(typed: dict[str, str]) -> None:
    values, wrong = values_of(SCHEMA, typed)
    assert values == {}
    assert wrong.keys() == typed.keys()


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", ""])
def test_only_finite_numbers_are_numbers(text: str) -> None:
    with pytest.raises(Mistyped):
        read_curve(text)
