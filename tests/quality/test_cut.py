"""A cut of bench B on every machine: the shipped family, merged by the engine and scored by the scorer.

The bars are far wider than what moves between machines; a method that is broken falls through them.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest

from quality.aim import agreement
from quality.candidates import candidate
from quality.runner import Runner
from quality.shipped import ShippedBench
from quality.tried import Tried

TRIED = {
    "average": ("linear", None),
    "sum of 0.7": ("task_arithmetic", 0.7),
    "sum": ("task_arithmetic", 1.0),
    "double sum": ("task_arithmetic", 2.0),
    "sum and aim": ("aim", 1.0),
    "ties": ("ties", 1.5),
    "tsv_m": ("tsv_m", 1.0),
    "regmean": ("regmean", 0.9),
    "fisher": ("fisher", None),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> ShippedBench:
    return ShippedBench(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def tried(bench: ShippedBench) -> Mapping[str, Tried]:
    runner = Runner(bench, (0,), lambda _: None)
    return {name: runner.tried(candidate(method), value) for name, (method, value) in TRIED.items()}


def gain(tried: Mapping[str, Tried], name: str) -> float:
    """The share of the experts' gain over the base that a merge keeps, in per cent."""
    return tried[name].headlines[0]


@pytest.mark.parametrize("name", ["average", "ties", "tsv_m", "regmean", "fisher", "sum of 0.7"])
def test_a_merge_keeps_a_good_part_of_what_both_experts_gained(tried: Mapping[str, Tried], name: str) -> None:
    assert 40 < gain(tried, name) < 100


def test_a_tuned_sum_and_singular_vectors_beat_plain_averaging(tried: Mapping[str, Tried]) -> None:
    assert gain(tried, "sum of 0.7") > gain(tried, "average") + 4
    assert gain(tried, "tsv_m") > gain(tried, "average") + 2


def test_too_large_a_sum_is_worse_than_the_base(tried: Mapping[str, Tried]) -> None:
    assert gain(tried, "double sum") < -50


def test_aim_gives_the_bases_own_text_back_and_mends_an_overshooting_sum(tried: Mapping[str, Tried]) -> None:
    assert tried["sum and aim"].scores[0]["prose"] > tried["sum"].scores[0]["prose"] + 0.01
    assert gain(tried, "sum and aim") > gain(tried, "sum") + 2


def test_aim_is_the_formula_of_the_released_code_to_rounding(bench: ShippedBench) -> None:
    agreed = agreement(bench, bench.family(0))
    assert agreed.tensors == 37 and agreed.worst <= 128


def test_the_bench_finds_its_folder_by_what_decides_the_models(tmp_path: Path) -> None:
    assert ShippedBench(tmp_path).folder == ShippedBench(tmp_path).folder
