"""The pages say the command, the versions, the seeds and the date, and draw plots that are XML."""

import xml.etree.ElementTree as Xml
from pathlib import Path

import pytest

from merge import evidence as told
from quality.__main__ import BENCHES, _parser
from quality.aim import Agreement, grid
from quality.aim_page import Grid, write_aim
from quality.evidence import Outcome, outcome_of, write_evidence
from quality.page import write_quality
from quality.plot import Point, dots, plane, ticks
from quality.runner import Runner
from tests.quality.fake import FakeBench


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(FakeBench(tmp_path_factory.mktemp("bench")), (0, 1), lambda _: None)


@pytest.fixture(scope="module")
def outcome(runner: Runner) -> Outcome:
    return outcome_of(runner, ["linear", "ties", "task_arithmetic", "expo"])


def test_the_page_says_how_it_was_made(outcome: Outcome, tmp_path: Path) -> None:
    write_quality([outcome], "make quality", tmp_path)
    page = (tmp_path / "quality.md").read_text()
    assert (
        "Written by `make quality` on 20" in page
        and "torch 2" in page
        and "**2 seeds** were run (0, 1)" in page
    )
    assert "`expo`: takes one model" in page and "| `ties` | scale" in page
    Xml.fromstring((tmp_path / "figures/quality-a.svg").read_text())


def test_the_evidence_is_what_was_measured(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "evidence.json"
    write_evidence([outcome], "make quality", file)
    monkeypatch.setattr(told, "FILE", file)
    told.evidence.cache_clear()
    try:
        assert "Bench A: not run, it takes one model" in str(told.evidence_line("expo"))
        assert "averaging" in str(told.evidence_line("ties"))
        assert told.evidence_line("unheard_of") is None
    finally:
        told.evidence.cache_clear()


def test_the_page_of_aim_shows_every_merge_three_ways(runner: Runner, tmp_path: Path) -> None:
    variants = tuple(grid(runner))
    bounds = tuple(runner.bounds(seed) for seed in runner.seeds)
    write_aim(
        [Grid(runner.bench, runner.seeds, bounds, variants)], Agreement(1, 4, 0.5, 1.0), "make", tmp_path
    )
    page = (tmp_path / "aim.md").read_text()
    assert len(variants) == 5 * 7 and not [v.tried.why_not for v in variants if v.tried.why_not]
    assert page.count("| control 0.4 |") == page.count("| AIM 0.4 |") == 5
    Xml.fromstring((tmp_path / "figures/aim-a.svg").read_text())


def test_every_bench_is_on_the_page_unless_some_are_named() -> None:
    asked = _parser().parse_args
    assert asked(["methods"]).benches == sorted(BENCHES) == ["a", "b", "c", "d", "e"]
    assert asked(["methods", "--benches", "c"]).benches == ["c"]
    assert asked(["search"]).benches == ["b", "c", "e"]


def test_plots_are_xml_that_fits_dark_pages_too() -> None:
    drawn = dots("A & B", "points", {"ties": [Point(3, 0.5)], "<odd>": [Point(1, float("nan"))]}, {"base": 0})
    Xml.fromstring(drawn)
    assert "prefers-color-scheme:dark" in drawn
    Xml.fromstring(plane("P", ("x", "y"), {"ties": [("a", Point(1), Point(2)), ("b", Point(1), Point(2))]}))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 41), (1e-4, 2e-4), (97, 99)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 9 and low <= found[0] and found[-1] <= high
