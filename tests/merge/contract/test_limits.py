from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge.contract.limits import Caution, Limit, conflicts
from merge.errors import Finding
from merge.plan import plan_or_findings
from merge.recipe.recipe import recipe_from
from tests.merge import exact

ROOM = Limit({"density": 1, "gamma": 1}, 1, {"overlap": "shrink"})
DEFAULTS = {"density": 0.9, "gamma": 0.01, "overlap": "refuse"}


def found(**values: Any) -> list[str]:
    return list(conflicts([ROOM], DEFAULTS, values))


def test_a_broken_limit_is_told_with_its_numbers() -> None:
    assert found(density=0.995) == [
        "density + gamma must be at most 1, but density is 0.995 and gamma is 0.01"
    ]
    below = Limit({"epsilon": 2, "density": -1})
    assert below.broken({"epsilon": 0.5, "density": 0.75}) == (
        "2 epsilon - density must be at most 0, but epsilon is 0.5 and density is 0.75"
    )


def test_the_limit_itself_is_allowed_whatever_the_binary_digits() -> None:
    assert found(density=0.7, gamma=0.3) == []
    assert found(density=0.9, gamma=0.1) == []


def test_each_source_is_held_to_the_limit_with_its_own_values() -> None:
    assert found(density=(0.5, None, 0.99), gamma=0.005) == []
    assert len(found(density=(0.5, None, 0.999), gamma=0.005)) == 1
    assert len(found(density=(0.5, None), gamma=(0.1, 0.2))) == 1, "the default density is 0.9"


def test_a_setting_may_lift_the_limit() -> None:
    assert found(density=0.9, gamma=0.5, overlap="shrink") == []


def test_a_caution_is_told_from_its_bound_on() -> None:
    caution = Caution("mind the gap", "reach", 2.0)
    assert caution.heard({"reach": 1.0}, {}, 3) is None
    assert caution.heard({"reach": 2.0}, {}, 3) == ("with 3 sources and reach 2 (from 2 on), mind the gap")
    assert caution.heard({"reach": 1.0}, {"reach": (None, 5.0)}, 2) is not None, "of any source"
    assert caution.rule() == "where `reach` is at least 2"


def test_a_bound_may_be_shared_out_among_the_other_sources() -> None:
    caution = Caution("mind the gap", "reach", 1.0, shared_out=True)
    told = [count for count in range(1, 6) if caution.heard({}, {"reach": 0.34}, count)]
    assert told == [4, 5]
    assert caution.rule() == "where `reach` is at least 1 / (sources - 1)"


def test_a_caution_is_not_told_where_another_setting_lifts_it() -> None:
    caution = Caution("mind the gap", "reach", 2.0, unless={"gap": 0})
    assert caution.heard({"reach": 2.0, "gap": 1}, {}, 3) is not None
    assert caution.heard({"reach": 2.0, "gap": 1}, {"gap": 0}, 3) is None
    assert caution.heard({"reach": 2.0, "gap": 0}, {"gap": None}, 3) is None
    assert caution.rule() == "where `reach` is at least 2, unless `gap` is 0"


def test_a_caution_without_a_setting_is_always_told() -> None:
    caution = Caution("mind the gap")
    assert (caution.heard({}, {}, 1), caution.rule()) == ("mind the gap", "")
    assert Caution(**caution.as_dict()) == caution


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return exact.family(tmp_path_factory.mktemp("family"))


def findings(folders: Mapping[str, Path], step: dict[str, Any], **source: Any) -> list[Finding]:
    recipe = recipe_from(
        {
            "base": "base",
            "sources": [{"id": "a", "model": "a"}, {"id": "b", "model": "b", "settings": source}],
            "steps": [step, {"method": "task_arithmetic"}],
        }
    )
    return [
        f
        for f in plan_or_findings(recipe, exact.indices(folders), budget=1 << 30)[1]
        if f.severity == "error"
    ]


def test_the_plan_refuses_settings_that_do_not_go_together(folders: Mapping[str, Path]) -> None:
    (finding,) = findings(folders, {"method": "breadcrumbs", "density": 0.9, "gamma": 0.2})
    assert (finding.code, finding.pointer) == ("settings_conflict", "/steps/0")
    assert "breadcrumbs: density + gamma must be at most 1" in finding.message


def test_the_plan_names_the_first_tensor_a_curve_goes_too_far_on(folders: Mapping[str, Path]) -> None:
    told = findings(folders, {"method": "della", "density": [0.5, 0.95], "epsilon": 0.1})
    assert told
    assert all("density + epsilon must be at most 1, but density is 0.95" in f.message for f in told)
    assert all(f.tensor is not None and "layers.0" not in f.tensor for f in told)


def test_the_plan_sees_what_a_source_says(folders: Mapping[str, Path]) -> None:
    step = {"method": "della", "density": 0.3, "epsilon": 0.1}
    assert findings(folders, step) == []
    (finding,) = findings(folders, step, epsilon=0.4)
    assert "epsilon - density must be at most 0" in finding.message
