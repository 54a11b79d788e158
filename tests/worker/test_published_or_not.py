"""Merge jobs whose results are checked and scored: what is published, and what only on the caller's word."""

import json

from db import evaluations
from tests.worker.conftest import Floor, family_recipe
from tests.worker.merging import PUSHED, REPO, commits, scored


def test_scores_of_the_result_and_its_parents_reach_the_rows_and_the_card(floor: Floor) -> None:
    job = floor.run(floor.order(**scored(floor)))
    assert job.state == "succeeded", job.error_detail
    with floor.sessions() as session:
        found = {row.name: (row, scores) for row, scores in evaluations.of_job(session, job.id)}
    assert found["check"][0].passed is True
    subjects = {score.subject for score in found["texts"][1]}
    assert subjects == {"result", "base", "a", "b"}
    card = floor.read(REPO, "README.md").decode()
    assert "## Scores" in card
    for score in found["texts"][1]:
        if score.subject == "result":
            assert set(score.differences) == {"base", "a", "b"}
            for name, told in score.differences.items():
                assert f"| {name} | {told['value']:.4g} | {told['low']:.4g} to {told['high']:.4g} |" in card


def test_a_worker_without_the_harness_says_so_before_anything_is_fetched(floor: Floor) -> None:
    sets = [{"name": "arc", "kind": "lm_eval", "settings": {"task": "arc_easy"}}]
    job = floor.run(floor.order(evaluate={"sets": sets}))
    assert (job.state, job.error_code) == ("failed", "harness_missing"), job.error_detail
    assert not [event for event in floor.events(job.id) if event.type == "merge.phase"]


def test_a_result_worse_than_the_margin_is_not_published(floor: Floor) -> None:
    recipe = family_recipe(steps=[{"method": "task_arithmetic", "scale": 3.0}])
    job = floor.run(floor.order(recipe, **scored(floor, margin=0.001, loss_margin=None)))
    assert (job.state, job.error_code) == ("failed", "check_failed")
    assert "bits_per_byte on texts" in (job.error_detail or "") and commits(floor) == 0


def test_a_broken_result_is_published_only_on_the_callers_word(floor: Floor) -> None:
    for name in ("base", "expert1", "expert2"):
        path = floor.hub.store.root / "team" / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 8}))
    job = floor.run(floor.order(**PUSHED))
    assert (job.state, job.error_code) == ("failed", "check_failed"), job.error_detail
    assert commits(floor) == 0
    job = floor.run(floor.order(output={"repo": REPO, "publish": "always"}))
    assert job.state == "succeeded" and job.result is not None and job.result["checked"] is False
    assert commits(floor) == 1


def short_of_memory(floor: Floor, *answers: int) -> None:
    """What the worker says of its free memory, one answer after the other, then the last again."""
    left = list(answers)
    floor.free_memory = lambda _device: left.pop(0) if len(left) > 1 else left[0]


def test_a_result_that_cannot_be_checked_here_is_refused_before_the_download(floor: Floor) -> None:
    short_of_memory(floor, 1000)
    job = floor.run(floor.order(**PUSHED))
    assert (job.state, job.error_code) == ("failed", "check_impossible")
    assert "1000 free" in (job.error_detail or "") and "publish = always" in (job.error_detail or "")
    assert floor.hub.stats.bytes["weight"] == 0 and commits(floor) == 0


def test_a_result_that_could_not_be_checked_after_all_is_not_published(floor: Floor) -> None:
    short_of_memory(floor, 1 << 40, 1000)
    job = floor.run(floor.order(**PUSHED))
    assert (job.state, job.error_code) == ("failed", "check_impossible") and commits(floor) == 0


def test_an_unchecked_result_is_published_on_the_callers_word_and_says_so(floor: Floor) -> None:
    short_of_memory(floor, 1000)
    job = floor.run(floor.order(output={"repo": REPO, "publish": "always"}))
    assert job.state == "succeeded" and job.result is not None and job.result["checked"] is None
    warned = [each.data["code"] for each in floor.events(job.id) if each.type == "merge.warning"]
    assert "not_checked" in warned and commits(floor) == 1


def test_an_unchecked_result_may_stay_with_the_service(floor: Floor) -> None:
    short_of_memory(floor, 1000)
    job = floor.run(floor.order())
    assert job.state == "succeeded" and job.result is not None and job.result["checked"] is None
