"""Every method of the catalogue has a chain it is tried in, or a reason why not; the climb finds the top."""

import pytest

from merge.catalog import catalogue
from quality.candidates import LADDER, Candidate, candidate, candidates, climb


def varied(each: Candidate | tuple[str, str]) -> bool:
    return isinstance(each, Candidate) and bool(each.variant)


def test_every_method_of_the_catalogue_is_run_or_refused_with_a_reason() -> None:
    found = [
        each.name if isinstance(each, Candidate) else each[0] for each in candidates(5) if not varied(each)
    ]
    assert found == list(catalogue())
    minimum = {"method": "wudi", "filter": "none", "start": "sum"}
    assert [each.steps for each in filter(varied, candidates(5))] == [(minimum,)]
    assert all(each[1] for each in candidates(5) if not isinstance(each, Candidate))


def test_what_takes_two_models_is_refused_for_five_and_run_for_two() -> None:
    refused = {each[0]: each[1] for each in candidates(5) if not isinstance(each, Candidate)}
    assert refused["slerp"] == "takes 2 models; there are 5 experts"
    assert any(isinstance(each, Candidate) and each.name == "slerp" for each in candidates(2))


def test_what_prepares_is_followed_and_what_adjusts_is_preceded_by_task_arithmetic() -> None:
    assert [step["method"] for step in candidate("dare").steps] == ["dare", "task_arithmetic"]
    assert [step["method"] for step in candidate("aim").steps] == ["task_arithmetic", "aim"]
    assert candidate("dare", "ties").with_value(0.7)[1] == {"method": "ties", "scale": 0.7}


@pytest.mark.parametrize("top", LADDER)
def test_the_climb_ends_on_the_top_wherever_it_is(top: float) -> None:
    asked: list[float] = []

    def measure(value: float) -> float:
        asked.append(value)
        return -abs(LADDER.index(value) - LADDER.index(top))

    assert climb(LADDER, 0.6, measure) == (top, 0)
    assert len(asked) == len(set(asked)) <= abs(LADDER.index(top) - LADDER.index(0.6)) + 3
