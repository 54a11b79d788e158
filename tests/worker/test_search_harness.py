"""Searches by tasks of lm-evaluation-harness as jobs; a stand-in gives the numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_search_harness import CONFIG, ROWS
from tests.scoring.harness.stand_in import rows_given, stand_in
from tests.worker.conftest import Floor
from tests.worker.test_search_job import order, ran, rows
from tests.worker.test_search_made import TWO, asked, left, made, values

NUMBERS = {name: {"at": f"sources.{name}.weight", "low": 0, "high": 1} for name in "ab"}


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in notes what it was given."""
    monkeypatch.setattr("worker.measures.run_harness", stand_in(tmp_path / "harness"))
    monkeypatch.setattr("worker.scorer.require_tasks", lambda *_, **__: None)
    return tmp_path / "harness"


def wanted(floor: Floor, search: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """A search by a task of one's own."""
    path = floor.hub.store.root / "team" / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    own = {"kind": "lm_eval", "data": {"path": "./rows.jsonl"}, "settings": {"config": CONFIG, **settings}}
    evaluate = {"sets": [{"name": "texts", **own}]}
    return order(floor, {**TWO, **(search or {})}, evaluate=evaluate)


def test_candidates_are_written_with_the_reason_and_scores_are_known_by_all_that_decides_them(
    floor: Floor, harness: Path
) -> None:
    job = ran(floor, asked(floor, wanted(floor)))
    assert job.result is not None and job.result["failed"] == 0 and len(set(values(floor, job))) == 2
    (told,) = made(floor, job.id)
    why = "its set texts is scored by lm-evaluation-harness, which loads a folder"
    assert (told["made"], told["why"]) == ("disk", why) and left(floor) == []
    assert job.result["candidates"] == {"made": "disk", "why": why}
    again = ran(floor, asked(floor, wanted(floor)))
    assert again.result is not None and again.result["reused"] == 2
    assert values(floor, again) == values(floor, job) and rows_given(harness) == [8, 8]
    other = ran(floor, asked(floor, wanted(floor, num_fewshot=1)))
    assert other.result is not None and other.result["reused"] == 0


def test_niches_get_the_score_of_every_example(floor: Floor, harness: Path) -> None:
    niches = {
        "method": "m2n2",
        "settings": {"archive": 3},
        "space": NUMBERS,
        "budget": {"evaluations": 4},
    }
    job = ran(floor, asked(floor, wanted(floor, niches)))
    examples = [row.told["examples"] for row in rows(floor, job) if row.examples]
    assert len(examples) == 4 and all(len(each) == len(ROWS) for each in examples)
    assert job.result is not None and job.result["failed"] == 0 and set(rows_given(harness)) == {8}


@pytest.mark.parametrize(
    ("status", "metric", "code"), [(0, "acc_norm", "metric_missing"), (3, "acc", "harness_missing")]
)
def test_what_would_befall_every_candidate_ends_the_job_at_the_first(
    floor: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, metric: str, code: str
) -> None:
    monkeypatch.setattr("worker.measures.run_harness", stand_in(tmp_path / "harness", status))
    monkeypatch.setattr("worker.scorer.require_tasks", lambda *_, **__: None)
    sets = [{"name": "arc", "kind": "lm_eval", "settings": {"task": "arc_easy"}}]
    search = {**TWO, "objectives": [{"set": "arc", "metric": metric}]}
    job = floor.run(asked(floor, order(floor, search, evaluate={"sets": sets})))
    assert (job.state, job.error_code) == ("failed", code)
    said = "does not measure 'acc_norm', but acc, f1" if status == 0 else "install mergery[eval]"
    assert said in str(job.error_detail)
    assert not any(row.told for row in rows(floor, job)) and left(floor) == []


def test_a_worker_without_the_harness_says_so_before_anything_is_fetched_or_tried(floor: Floor) -> None:
    sets = [{"name": "arc", "kind": "lm_eval", "settings": {"task": "arc_easy"}}]
    search = {**TWO, "objectives": [{"set": "arc", "metric": "acc"}]}
    job = floor.run(asked(floor, order(floor, search, evaluate={"sets": sets})))
    assert (job.state, job.error_code) == ("failed", "harness_missing"), job.error_detail
    assert rows(floor, job) == [] and floor.hub.stats.bytes["weight"] == 0
    assert not [event for event in floor.events(job.id) if event.type == "search.phase"]
