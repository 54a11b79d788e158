"""Of every method and preset it is told when to use it, what it costs and where it differs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.recipes import RECIPES
from merge.catalog import catalogue
from merge.guide import GUIDE, Advice, advice_on
from merge.recipe.presets import PRESETS, listing

PAGE = Path(__file__).parents[2] / "docs" / "which-method.md"
PAPER = re.compile(r"arXiv:\d{4}\.\d{5}|\b(19|20)\d\d\b|mergekit")


def test_there_is_advice_on_every_method_and_on_no_other() -> None:
    assert GUIDE.keys() == catalogue().keys()


@pytest.mark.parametrize("name", listing())
def test_nothing_is_left_unsaid(name: str) -> None:
    entry = listing()[name]
    told = advice_on(entry)
    for what in Advice.__slots__:
        sentence = getattr(told, what)
        assert sentence.endswith("."), what
        for method in re.findall(r"`([a-z_]+)`", sentence):
            known = {*listing(), *(key for each in catalogue().values() for key in each.settings)}
            assert method in known, f"{method} is neither a method nor a setting"
    assert len(entry.about) > 40
    assert entry.paper is None or PAPER.search(entry.paper), "a paper or a source by name"


def test_only_what_has_no_paper_of_its_own_is_without_one() -> None:
    without = {name for name, each in catalogue().items() if each.paper is None}
    assert without == {"activation_trim", "cat_svd", "clip_outliers", "norm_repair", "passthrough"}


def test_a_method_that_reads_more_says_so() -> None:
    for name, entry in catalogue().items():
        always = [each for each in entry.needs["stats"] if not each.get("when")]
        if always and not entry.needs.get("factors"):
            assert "reading" in GUIDE[name].costs or "twice" in GUIDE[name].costs, name
        if not entry.needs["stats"] and not entry.statistics and entry.family == "elementwise":
            assert "reading" not in GUIDE[name].costs, name
        if entry.statistics:
            assert "pass" in GUIDE[name].costs or "texts" in GUIDE[name].costs, name


def test_a_preset_is_for_what_its_methods_are_for() -> None:
    told = advice_on(listing()["dare_ties"])
    assert [method for method, _ in PRESETS["dare_ties"].chain] == ["dare", "ties"]
    assert told.use == f"{GUIDE['dare'].use} {GUIDE['ties'].use}"
    assert told.costs == GUIDE["ties"].costs, "nothing more is said only where it is all"


def test_the_page_on_choosing_names_every_method_and_its_cost() -> None:
    text = PAGE.read_text(encoding="utf-8")
    costs = text.partition("## What each costs")[2].partition("## Ours")[0]
    missing = [name for name in catalogue() if f"`{name}`" not in text]
    assert not missing
    assert not [name for name in catalogue() if f"`{name}`" not in costs and f"`{name}:" not in costs]
    assert "2511.21437" in text and "only task arithmetic" in text


def test_every_method_on_weights_alone_is_timed_by_the_bench() -> None:
    timed = {step["method"] for each in RECIPES.values() for step in each.steps}
    assert timed == {n for n, each in catalogue().items() if each.family in ("elementwise", "spectral")}


def test_it_is_read_without_torch() -> None:
    code = "import sys, merge.guide as g; assert g.GUIDE; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
