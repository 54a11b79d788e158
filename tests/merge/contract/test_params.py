import math
from typing import Literal

import pytest

from merge.catalog import problems
from merge.contract.params import NoParams, build, knob, params, schema_of
from merge.errors import SettingInvalid


@params
class Sample:
    share: float = knob(0.5, "A share.", gt=0, le=1, by_depth=True)
    each: tuple[float, ...] = knob(1.0, "One a source.", by_source=True)
    mode: Literal["soft", "hard"] = knob("soft", "How.")
    count: int = knob(3, "How many.", ge=1)
    flag: bool = knob(False, "Whether.")


def test_schema_tells_type_limits_default_and_where_it_may_vary() -> None:
    properties = schema_of(Sample)["properties"]
    assert properties["share"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "A share.",
        "x-by-depth": True,
    }
    assert properties["each"]["x-by-source"] is True
    assert properties["mode"]["enum"] == ["soft", "hard"]
    assert properties["count"]["type"] == "integer"


def test_a_single_value_is_repeated_for_every_source() -> None:
    assert build(Sample, {"each": 2}, 3).each == (2.0, 2.0, 2.0)
    assert build(Sample, {"each": (1, 2)}, 2).each == (1.0, 2.0)


def test_settings_not_named_keep_their_default() -> None:
    made = build(Sample, {"share": 1}, 1)
    assert (made.share, made.mode, made.count, made.flag) == (1.0, "soft", 3, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 0},
        {"share": 1.01},
        {"share": math.nan},
        {"share": math.inf},
        {"share": "0.5"},
        {"share": True},
        {"count": 1.5},
        {"count": 0},
        {"flag": 1},
        {"mode": "medium"},
        {"each": (1.0, math.nan)},
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingInvalid, match=next(iter(wrong))):
        build(Sample, wrong, 2)


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingInvalid, match=r"'shares'.*did you mean 'share'"):
        build(Sample, {"shares": 0.5}, 1)
    assert problems(schema_of(NoParams), {"x": 1})
