"""Numbers are kept as soon as they are there; coefficients come from validation; failures are told."""

from dataclasses import replace
from pathlib import Path

import pytest

from quality.candidates import candidate
from quality.runner import Runner
from quality.tried import Tried, item_error, seen
from tests.quality.fake import FakeBench


@pytest.fixture
def bench(tmp_path: Path) -> FakeBench:
    return FakeBench(tmp_path)


def quiet(_: str) -> None:
    return


def test_a_second_run_reads_what_the_first_kept(bench: FakeBench) -> None:
    first = Runner(bench, (0, 1), quiet).tried(candidate("task_arithmetic"))
    asked = len(bench.scored)
    again = Runner(bench, (0, 1), quiet).tried(candidate("task_arithmetic"))
    assert again == first and len(bench.scored) == asked


def test_a_further_seed_runs_only_what_is_new(bench: FakeBench) -> None:
    Runner(bench, (0,), quiet).tried(candidate("linear"))
    before = len(bench.scored)
    Runner(bench, (0, 1), quiet).tried(candidate("linear"))
    assert all(asked.endswith("test 1") for asked in bench.scored[before:])


def test_the_coefficient_is_looked_for_on_validation_items_alone(bench: FakeBench) -> None:
    tried = Runner(bench, (0, 1), quiet).tried(candidate("task_arithmetic"))
    assert tried.value is not None and tried.validation[tried.value] == max(tried.validation.values())
    merges = [asked for asked in bench.scored if "merged" in asked]
    assert merges == ["merged validation 0"] * len(tried.validation) + ["merged test 0", "merged test 1"]


def test_a_mean_of_the_experts_is_nearer_to_both_than_the_other_expert(bench: FakeBench) -> None:
    runner = Runner(bench, (0,), quiet)
    merged, bounds = runner.tried(candidate("linear")), runner.bounds(0)
    assert merged.scores[0]["one"] > bounds.experts["two"]["one"]
    assert merged.costs[0]["peak_mebibytes"] >= 0 and merged.costs[0]["seconds"] > 0


@pytest.mark.parametrize("name", ["regmean", "regmean_pp"])
def test_what_a_method_has_to_know_of_data_is_measured_first(bench: FakeBench, name: str) -> None:
    assert Runner(bench, (0,), quiet).tried(candidate(name), 0.9).why_not is None


def test_a_method_that_cannot_run_is_told_and_the_rest_goes_on(bench: FakeBench) -> None:
    (bench.folders["two"] / "model.safetensors").write_bytes(b"nothing")
    tried = Runner(bench, (0,), quiet).tried(candidate("ties"))
    assert tried.why_not and not tried.headlines


def told(name: str, *items: float) -> Tried:
    """A method with one seed and one task."""
    value = sum(items) / len(items)
    return Tried(
        name, headlines=(value,), slopes=({"t": 1.0},), scores=({"t": value},), items=({"t": items},)
    )


def test_errors_are_over_items_and_differences_are_paired() -> None:
    one, two = told("one", 1.0, 3.0), told("two", 0.0, 2.0)
    assert one.headline == (2.0, 1.0) and one.over(two) == (1.0, 0.0) == one.score_over(two, "t")
    assert seen(one.over(two)) and not seen((1.0, 0.6))


def test_two_seeds_halve_the_variance_of_one() -> None:
    items = {"t": [0.0, 100.0] * 8}
    alone = item_error([{"t": 0.5}], [items])
    assert item_error([{"t": 0.5}] * 2, [items] * 2) == pytest.approx(alone / 2**0.5)


def test_the_error_of_a_share_of_the_gain_is_that_of_the_distance_to_the_base() -> None:
    ahead = replace(told("ahead", 11.0, 31.0), zero=({"t": (10.0, 30.0)},))
    assert ahead.headline[1] == 0.0 < told("ahead", 11.0, 31.0).headline[1]


def test_the_base_s_items_count_where_the_headline_is_told_from_it(bench: FakeBench) -> None:
    bench.measure = "gain"
    tried = Runner(bench, (0,), quiet).tried(candidate("linear"))
    assert tried.zero[0].keys() >= set(bench.tasks)
