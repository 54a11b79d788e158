"""Every search method is tried on a merge that it fits, candidates are kept, the page says what it gains."""

import functools
import math
import xml.etree.ElementTree as Xml
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import quality.__main__ as command
from quality.bench import from_scorer, right
from quality.fronts import Compared, Front, Problem, compared, front_of
from quality.llm import AnswerBench, LlmBench
from quality.runner import Runner
from quality.search_page import Proof, write_proof
from quality.tried import Tried
from quality.tuner import Tuned, Tuner
from quality.tunings import HEADLINE, tunings
from scoring.score import Score
from search.settings import BY_METHOD
from tests.quality.fake import FakeBench

PROBLEM = Problem(("one", "two"), 5, 7, 3)


@pytest.fixture
def bench(tmp_path: Path) -> FakeBench:
    return FakeBench(tmp_path)


def tuner_of(bench: FakeBench, seeds: tuple[int, ...] = (0,), *, only_kept: bool = False) -> Tuner:
    return Tuner(Runner(bench, seeds, lambda _: None, only_kept=only_kept), bench)


def test_every_search_method_has_a_merge_that_it_fits(bench: FakeBench) -> None:
    found = tunings(bench)
    assert sorted(each.method for each in found) == sorted(BY_METHOD)
    assert all(each.order(0).budget.evaluations <= 40 for each in found)


def test_where_likelihoods_count_no_search_but_of_a_front_scores_more_than_the_tasks(
    bench: FakeBench,
) -> None:
    found = tunings(bench.answering())
    assert sorted(each.method for each in found) == sorted(BY_METHOD)
    assert {each.method for each in found if not each.tasks} == {"nsga", "map"}
    assert all(len(each.order(0).space) > 0 for each in found)


def test_a_search_by_likelihood_has_its_own_kept_scores_and_accuracies_beside_them(
    bench: FakeBench, tmp_path: Path
) -> None:
    bench.answering()
    tuner = tuner_of(bench)
    told = tuner.tuned(next(each for each in tunings(bench) if each.method == "m2n2"))
    assert told.tuned is not None and told.untuned is not None
    before, after = (each.headline[0] for each in (told.untuned, told.tuned))
    assert before < after < 0 and told.found[0]["notes"]["archive"]
    assert not list((bench.folder / "results").rglob("model-*"))  # no bounds are needed
    write_proof([Proof(bench, (0,), (told,))], [], "make", tmp_path)
    page = (tmp_path / "search-proof.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `m2n2`")]
    (head,) = [line for line in page.splitlines() if line.startswith("| search")]
    assert head.endswith("| accuracy, %: untuned | tuned |") and head.count("|") == row.count("|")
    assert f"| {before:.3f} | {after:.3f} ± " in row
    assert row.endswith(f"| {50 + 50 * before:.1f} | {50 + 50 * after:.1f} |")
    assert "0 is certain, -2 a guess" in page


def test_what_the_scorer_says_of_questions_becomes_bits_with_accuracies_beside_them() -> None:
    scores = [
        Score("t", "accuracy", 0.5, None, 2, (1.0, 0.0)),
        Score("t", "log_loss", 1.5 * math.log(2), None, 2, (math.log(2), 2 * math.log(2))),
        Score("own", "bits_per_byte", 1.25, None, 1, (1.25,)),
        Score("own", "perplexity", 3.0, None, 1, (3.0,)),
    ]
    told = from_scorer(scores, "likelihood")
    assert told.scores == pytest.approx({"t": -1.5, right("t"): 50.0, "own": -1.25})
    assert told.items["t"] == pytest.approx([-1.0, -2.0]) and told.items[right("t")] == [100.0, 0.0]
    assert from_scorer(scores).scores == {"t": 50.0, "own": -1.25}


def test_bench_c_keeps_what_searches_and_methods_score_apart(tmp_path: Path) -> None:
    methods, searches = LlmBench(tmp_path), AnswerBench(tmp_path)
    assert methods.folder == searches.folder and LlmBench.family is AnswerBench.family
    asked, others = asdict(searches.items), asdict(methods.items)
    assert asked != others and asked["measure"] == "likelihood" and asked["pages"] == others["pages"]
    assert asked["validation"] > others["validation"] and asked["test"] > others["test"]
    assert (methods.measure, searches.measure) == ("accuracy", "likelihood")


def test_a_search_is_tuned_on_validation_and_held_against_the_untuned_merge_on_test(bench: FakeBench) -> None:
    tuning = next(each for each in tunings(bench) if each.method == "cma_es")
    told = tuner_of(bench, (0, 1)).tuned(tuning)
    assert told.why_not is None and told.tuned is not None and told.untuned is not None
    merges = [asked for asked in bench.scored if asked.startswith("memory")]
    assert sum(asked.endswith("test 0") for asked in merges) == 2
    assert all(
        len(found["trials"]) == found["evaluations"] for found in told.found
    )  # untuned ones are beside
    best = [found["values"][0] for found in told.found]
    tried = [max(each["values"][0] for each in found["trials"]) for found in told.found]
    assert best == tried and all(
        value >= found["untuned"] for value, found in zip(best, told.found, strict=True)
    )
    assert told.tuned.over(told.untuned)[0] > 0
    assert all(0 < found["merging_cpu_seconds"] <= found["cpu_seconds"] for found in told.found)


def test_what_a_search_has_scored_is_kept_and_shared_and_replayed_alike(bench: FakeBench) -> None:
    wanted = {each.method: each for each in tunings(bench)}
    first = tuner_of(bench).tuned(wanted["tpe"])
    asked = len(bench.scored)
    assert tuner_of(bench).tuned(wanted["tpe"]) == first and len(bench.scored) == asked
    (search,) = (bench.folder / "results/seed-0/search/searches").iterdir()
    search.unlink()
    again = tuner_of(bench).tuned(wanted["tpe"])
    assert again == first and len(bench.scored) == asked
    other = tuner_of(bench, only_kept=True).tuned(wanted["genome"])
    assert other.why_not == "not run yet" and len(bench.scored) == asked


def test_choosing_among_experts_goes_by_the_tasks_that_are_asked_for(bench: FakeBench) -> None:
    tuning = next(each for each in tunings(bench) if each.method == "expert_subset")
    assert tuning.tasks == ("two",)
    told = tuner_of(bench).tuned(tuning)
    assert told.found[0]["point"] == {"one": False, "two": True} and told.tuned is not None
    assert told.tuned.headlines[0] == told.tuned.scores[0]["two"] == 100.0


def test_a_candidate_that_cannot_be_merged_is_told_and_the_search_goes_on(bench: FakeBench) -> None:
    tuning = next(each for each in tunings(bench) if each.method == "grid")
    values = {"at": "steps.ties.density", "values": [0.5, 3.0]}
    odd = replace(tuning, space={"density": values}, evaluations=2)
    told = tuner_of(bench).tuned(odd)
    assert told.found[0]["failed"] == 1 and told.found[0]["point"] == {"density": 0.5}


def test_where_all_candidates_fail_the_search_says_so(bench: FakeBench) -> None:
    tuning = next(each for each in tunings(bench) if each.method == "grid")
    odd = replace(
        tuning, space={"density": {"at": "steps.ties.density", "values": [2.0, 3.0]}}, evaluations=2
    )
    assert "not one candidate" in str(tuner_of(bench).tuned(odd).why_not)


def test_a_front_is_what_no_other_beats_and_its_volume_is_over_the_base() -> None:
    trials = [{"values": v} for v in ([2.0, 1.0], [1.0, 3.0], [1.0, 0.5], None, [-5.0, 9.0])]
    found = front_of({"trials": trials, "cpu_seconds": 1.0})
    assert set(found.points) == {(2.0, 1.0), (1.0, 3.0), (-5.0, 9.0)}
    assert found.volume == 4.0 and found.candidates == 5  # 1 x 3 and 1 x 1 beside it; nothing below the base


def test_map_reaches_the_front_of_a_grid_with_fewer_candidates(bench: FakeBench) -> None:
    told = compared(tuner_of(bench), PROBLEM, 0)
    assert told.grid.candidates == 25 and told.map.candidates <= 10
    assert told.ratio == told.map.volume / told.grid.volume > 0.95


def tried(name: str, *items: float) -> Tried:
    value = sum(items) / len(items)
    return Tried(
        name, headlines=(value,), slopes=({"t": 1.0},), scores=({"t": value},), items=({"t": items},)
    )


@pytest.mark.parametrize(
    ("validation", "test", "said"),
    [
        ((5.0, 5.0), (1.0, 2.0), "its best candidate is the untuned merge."),
        ((4.0, 5.0), (1.1, 1.9), "none of its candidates is better than the untuned merge on validation"),
        ((6.0, 5.0), (3.0, 1.0), "better, but too few test items to be sure"),
        ((6.0, 5.0), (0.0, 1.0), "owes a part of its score to these items"),
    ],
)
def test_the_page_says_why_a_search_is_not_better(
    bench: FakeBench, tmp_path: Path, validation: tuple[float, float], test: tuple[float, float], said: str
) -> None:
    tuning = tunings(bench)[0]
    found = {
        "values": [validation[0]],
        "untuned": validation[1],
        "evaluations": 3,
        "cpu_seconds": 2.0,
        "merging_cpu_seconds": 1.0,
    }
    told = Tuned(tuning, (found,), tried("tuned", *test), tried("plain", 1.0, 2.0), tried("linear", 0.0, 1.0))
    write_proof([Proof(bench, (0,), (told,))], [], "make", tmp_path)
    page = (tmp_path / "search-proof.md").read_text()
    assert said in page and tuning.objectives == (HEADLINE,)


def test_the_page_shows_every_search_and_both_fronts(bench: FakeBench, tmp_path: Path) -> None:
    tuner = tuner_of(bench)
    wanted = [each for each in tunings(bench) if each.method in ("line", "greedy_soup", "map")]
    told = (*(tuner.tuned(each) for each in wanted), Tuned(wanted[0], why_not="not run yet"))
    fronts = [
        Compared(PROBLEM, 0, Front(25, ((1.0, 2.0),), 2.0, 1.0), Front(5, ((2.0, 0.9), (0.5, 1.5)), 1.8, 0.2))
    ]
    write_proof([Proof(bench, (0,), told)], fronts, "make quality-search", tmp_path)
    page = (tmp_path / "search-proof.md").read_text()
    assert "Written by `make quality-search` on 20" in page and "which of 2 experts help with two" in page
    assert "- `line`: not run yet" in page and "0.900 (with 20 % of them)" in page
    assert "No candidate of the grid beats 1 of the 2 points on MAP's front, but the grid's has 1" in page
    for file in ("search-a", "search-front"):
        Xml.fromstring((tmp_path / f"figures/{file}.svg").read_text())


def test_the_command_writes_the_page_from_what_is_kept(
    bench: FakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "HELD", {"b": lambda *_, **__: bench})
    monkeypatch.setattr(command, "write_proof", functools.partial(write_proof, docs=tmp_path))
    arguments = ["quality", "search", "--benches", "b", "--seeds", "1", "--cache", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*arguments, "--only", "line"])
    command.main()
    assert "line: " in capsys.readouterr().out and not (tmp_path / "search-proof.md").exists()
    asked = len(bench.scored)
    monkeypatch.setattr("sys.argv", [*arguments, "--kept"])
    command.main()
    page = (tmp_path / "search-proof.md").read_text()
    assert "| `line` | `ties` |" in page and "- `cma_es`: not run yet" in page and len(bench.scored) == asked


def test_the_page_is_written_on_as_many_seeds_as_every_search_has(
    bench: FakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [each for each in tunings(bench) if each.method in ("line", "grid")]
    monkeypatch.setattr(command, "HELD", {"b": lambda *_, **__: bench})
    monkeypatch.setattr(command, "tunings", lambda _: wanted)
    monkeypatch.setattr(command, "write_proof", functools.partial(write_proof, docs=tmp_path))
    for each in wanted:
        tuner_of(bench, (0, 1)).tuned(each)
    tuner_of(bench, (0, 1, 2)).tuned(wanted[0])
    monkeypatch.setattr(
        "sys.argv", ["quality", "search", "--benches", "b", "--kept", "--cache", str(tmp_path)]
    )
    command.main()
    page = (tmp_path / "search-proof.md").read_text()
    assert "**2 seeds** were run (0, 1)" in page and "not run yet" not in page
