"""One merge job from its row to its result, against a folder Hub."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from db import evaluations
from db.models.job import JobInput
from hub.folder_faults import Fault
from jobs import lifecycle
from jobs.submit import retry
from merge.checkpoint.index import index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run as run_merge
from tests import tiny
from tests.factories import let_lease_run_out, make_caller, make_rules
from tests.worker.conftest import TOKEN, Floor, family_recipe
from worker import merge_job
from worker.board import Board
from worker.run_job import run_job
from worker.workshop import Workshop

REPO = "team/merged"
PUSHED = {"output": {"repo": REPO}}


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def undisturbed(floor: Floor, recipe: dict[str, Any]) -> dict[str, bytes]:
    """Weights, index and config that the engine alone makes of the same recipe."""
    read = recipe_from(recipe)
    root = floor.hub.store.root
    folders = {"base": root / read.base} if read.base else {}
    folders |= {source.id: root / source.model for source in read.sources}
    plan = make_plan(read, {key: index_folder(path, key) for key, path in folders.items()}, budget=1 << 30)
    out = floor.folder / "undisturbed"
    run_merge(plan, folders, out, budget_bytes=1 << 30, threads=1)
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "mergery.json"}


def commits(floor: Floor, repo: str = REPO) -> int:
    return floor.hub.stats.requests["commit"]


def test_from_names_to_a_pushed_model_with_the_bytes_of_the_engine(floor: Floor) -> None:
    job = floor.run(floor.order(**PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    made = undisturbed(floor, family_recipe())
    assert len([name for name in made if name.endswith(".safetensors")]) > 3
    for name, content in made.items():
        assert floor.read(REPO, name) == content, name
    assert job.result is not None
    assert job.result["commit"] == floor.hub.head(REPO) and job.result["checked"] is True
    phases = [event.data["phase"] for event in floor.events(job.id) if event.type == "merge.phase"]
    assert phases == ["downloading", "merging", "evaluating", "uploading", "finalising"]
    manifest = json.loads(floor.read(REPO, "mergery.json"))
    assert manifest["job_id"] == job.id and "@" in manifest["recipe"]["base"]
    card = floor.read(REPO, "README.md").decode()
    assert "base_model:\n- team/base" in card and "base_model_relation: merge" in card
    with floor.sessions() as session:
        shas = {row.role: row.sha for row in session.scalars(select(JobInput))}
    assert shas == {
        "base": floor.hub.head("team/base"),
        **{k: floor.hub.head(f"team/expert{n}") for k, n in (("a", 1), ("b", 2))},
    }
    assert not list((floor.folder / "data" / "scratch" / "jobs").iterdir())


def test_without_a_repository_the_result_stays_as_an_artifact(floor: Floor) -> None:
    job = floor.run(floor.order())
    assert job.state == "succeeded" and job.result is not None
    folder = Path(job.result["folder"])
    assert folder == floor.folder / "data" / "artifacts" / job.id
    for name, content in undisturbed(floor, family_recipe()).items():
        assert (folder / name).read_bytes() == content
    assert (folder / "README.md").exists()
    assert commits(floor) == 0


def test_folders_inside_the_roots_are_read_in_place(floor: Floor) -> None:
    recipe = family_recipe(
        base="./base", sources=[{"id": "a", "model": "./expert1"}, {"id": "b", "model": "./expert2"}]
    )
    job = floor.run(floor.order(recipe))
    assert job.state == "succeeded", job.error_detail
    assert floor.hub.stats.bytes["weight"] == 0


def test_an_adapter_is_fetched_and_applied(floor: Floor) -> None:
    shapes = {
        name: info.shape
        for name, info in index_folder(floor.hub.store.root / "team/base", "b").tensors.items()
    }
    chosen = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if "q_proj" in name}
    tiny.lora(floor.hub.store.root / "team/lora", chosen)
    recipe = family_recipe(
        base=None,
        sources=[
            {"id": "a", "model": "team/base", "adapter": "team/lora"},
            {"id": "b", "model": "team/expert1"},
        ],
        steps=[{"method": "linear"}],
    )
    job = floor.run(floor.order(recipe, **PUSHED))
    assert job.state == "succeeded", job.error_detail
    plain = {**recipe, "sources": [{"id": "a", "model": "team/base"}, {"id": "b", "model": "team/expert1"}]}
    changed = {
        name for name, content in undisturbed(floor, plain).items() if floor.read(REPO, name) != content
    }
    weights = changed - {"merge_report.json", "merge_report.html"}
    assert weights and all(name.endswith(".safetensors") for name in weights)


def test_what_cannot_work_is_refused_before_a_byte_of_weights_is_fetched(floor: Floor) -> None:
    tiny.llama(floor.hub.store.root / "team/wide", hidden=48)
    recipe = family_recipe(sources=[{"id": "a", "model": "team/wide"}, {"id": "b", "model": "team/expert2"}])
    job = floor.run(floor.order(recipe, **PUSHED))
    assert (job.state, job.error_code) == ("failed", "plan_refused")
    assert job.error_findings is not None
    assert any(finding["code"] == "shape_mismatch" for finding in job.error_findings)
    assert floor.hub.stats.bytes["weight"] == 0 and floor.hub.stats.requests["create"] == 0


def test_a_push_that_is_not_allowed_fails_before_the_download(floor: Floor) -> None:
    job = floor.run(floor.order(output={"repo": "strangers/merged"}))
    assert (job.state, job.error_code) == ("failed", "permission_denied")
    assert floor.hub.stats.bytes["weight"] == 0


def start(floor: Floor, job_id: str) -> threading.Thread:
    thread = threading.Thread(target=floor.run, args=(job_id,))
    thread.start()
    return thread


def slow_uploads(floor: Floor, seconds: float = 0.25) -> None:
    floor.hub.faults.add("preupload", Fault(delay=seconds), times=1000)


def slow_weights(floor: Floor, seconds: float = 1.0) -> None:
    """The second half of every model comes late, so that the merge waits in its middle."""
    path = "model-00002-of-00002.safetensors"
    floor.hub.faults.add("get", Fault(delay=seconds), path=path, times=1000)


def test_cancel_in_the_middle_of_the_merge_publishes_nothing(floor: Floor) -> None:
    slow_weights(floor)
    job_id = floor.order(**PUSHED)
    thread = start(floor, job_id)
    until(lambda: floor.shards_written(job_id))
    floor.cancel(job_id)
    asked = time.monotonic()
    thread.join(20)
    assert time.monotonic() - asked < 5
    job = floor.job(job_id)
    assert job.state == "cancelled" and job.lease_owner is None
    assert "merging" in [event.data["phase"] for event in floor.events(job_id) if event.type == "merge.phase"]
    assert commits(floor) == 0


def test_a_retry_goes_on_from_the_shards_of_the_cancelled_job(floor: Floor) -> None:
    slow_weights(floor)
    first = floor.order(**PUSHED)
    thread = start(floor, first)
    until(lambda: len(floor.shards_written(first)) >= 2)
    floor.cancel(first)
    thread.join(20)
    floor.hub.faults.clear()
    time.sleep(1.2)  # the Hub still answers what nobody waits for
    floor.hub.stats.clear()
    with floor.sessions.begin() as session:
        old = floor.job(first)
        again = retry(session, make_caller(session), old, make_rules()).id
    job = floor.run(again)
    assert job.state == "succeeded", job.error_detail
    written = floor.shards_written(first) + floor.shards_written(again)
    assert len(written) == len(set(written)) and floor.shards_written(again)
    team = floor.hub.store.root / "team"
    late = [path for name in ("base", "expert1", "expert2") for path in (team / name).glob("*-00002-of*")]
    assert floor.hub.stats.bytes["weight"] <= sum(path.stat().st_size for path in late), "none came twice"
    for name, content in undisturbed(floor, family_recipe()).items():
        assert floor.read(REPO, name) == content


def test_a_stopping_worker_gives_the_job_back_without_using_up_an_attempt(floor: Floor) -> None:
    slow_weights(floor)
    job_id = floor.order(attempts=1, **PUSHED)
    workshop = floor.workshop
    thread = threading.Thread(target=run_job, args=(workshop, job_id, "worker-1"))
    thread.start()
    until(lambda: floor.shards_written(job_id))
    assert isinstance(workshop.board, Board)
    workshop.board.ask_to_stop()
    thread.join(20)
    assert floor.job(job_id).state == "queued"
    floor.hub.faults.clear()
    assert floor.run(job_id).state == "succeeded"
    written = floor.shards_written(job_id)
    assert len(written) == len(set(written))


def test_a_hub_that_is_away_means_later_and_the_reason_is_told(floor: Floor) -> None:
    floor.hub.faults.add("info", Fault(status=503), times=1000)
    job_id = floor.order(attempts=2, **PUSHED)
    job = floor.run(job_id)
    assert job.state == "queued" and job.not_before is not None
    told = [event.data for event in floor.events(job_id) if event.type == "merge.requeued"]
    assert told[0]["code"] == "hub_unavailable"


def test_a_revoked_token_is_a_clear_failure(floor: Floor) -> None:
    job_id = floor.order(**PUSHED)
    floor.hub.tokens.revoke(TOKEN)
    job = floor.run(job_id)
    assert job.state == "failed" and job.error_findings is not None
    assert {finding["code"] for finding in job.error_findings} == {"token_invalid"}


def test_bytes_that_are_not_the_commits_never_reach_the_merge(floor: Floor) -> None:
    files = [path.name for path in (floor.hub.store.root / "team/base").glob("*.safetensors")]
    job_id = floor.order(attempts=1, **PUSHED)
    for name in files:
        floor.hub.faults.add("get", Fault(corrupt=True), times=50, path=name)
    job = floor.run(job_id)
    assert job.state == "failed"
    assert commits(floor) == 0


def test_a_full_disk_is_told_before_the_download(floor: Floor) -> None:
    job_id = floor.order(**PUSHED)
    run_job(replace(floor.workshop, free_bytes=lambda _: 1000), job_id, "worker-1")
    job = floor.job(job_id)
    assert (job.state, job.error_code) == ("failed", "disk_full")
    assert "MERGERY_SCRATCH_DIR" in (job.error_detail or "") and floor.hub.stats.bytes["weight"] == 0


def short_disk(floor: Floor) -> Workshop:
    """Has room for the models and a shard, not for the whole result."""
    inputs = sum(
        path.stat().st_size
        for name in ("base", "expert1", "expert2")
        for path in (floor.hub.store.root / "team" / name).glob("*.safetensors")
    )
    return replace(floor.workshop, free_bytes=lambda _: inputs + (64 << 20) + 200_000)


def test_a_short_disk_lets_the_shards_go_one_by_one(floor: Floor) -> None:
    job_id = floor.order(output={"repo": REPO, "publish": "always"})
    run_job(short_disk(floor), job_id, "worker-1")
    job = floor.job(job_id)
    assert job.state == "succeeded", job.error_detail
    assert "merge.warning" in floor.types(job_id)
    for name, content in undisturbed(floor, family_recipe()).items():
        assert floor.read(REPO, name) == content


def test_shards_that_were_let_go_are_not_missed_after_a_crash_before_the_commit(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    job_id = floor.order(output={"repo": REPO, "publish": "always"})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merge_job, "write_card", crash)
        run_job(short_disk(floor), job_id, "worker-1")
    with floor.sessions.begin() as session:
        let_lease_run_out(session, job_id)
    with floor.sessions.begin() as session:
        assert lifecycle.recover_lost(session) == [job_id]
    run_job(short_disk(floor), job_id, "worker-1")
    job = floor.job(job_id)
    assert job.state == "succeeded", job.error_detail
    for name, content in undisturbed(floor, family_recipe()).items():
        assert floor.read(REPO, name) == content


def test_a_commit_whose_answer_was_lost_is_not_made_twice(floor: Floor) -> None:
    floor.hub.faults.add("commit", Fault(status=500, after=True))
    job = floor.run(floor.order(**PUSHED))
    assert job.state == "succeeded", job.error_detail
    assert commits(floor) == 1


def test_a_job_that_is_cancelled_while_it_commits_says_so(floor: Floor) -> None:
    """Its worker ends before the Hub has answered."""
    job_id = floor.order(**PUSHED)
    with floor.sessions.begin() as session:
        claimed = lifecycle.claim(session, job_id, "worker-1", 60.0)
        assert claimed is not None
        fence = lifecycle.fence_of(claimed)
        lifecycle.enter_phase(session, fence, "finalising")
        lifecycle.release(session, fence)
    floor.cancel(job_id)
    assert floor.job(job_id).state == "cancelled" and warnings(floor, job_id) == ["commit_unsure"]
    early = floor.order(**PUSHED)
    floor.cancel(early)
    assert floor.job(early).state == "cancelled" and warnings(floor, early) == []


def warnings(floor: Floor, job_id: str) -> list[str]:
    return [each.data["code"] for each in floor.events(job_id) if each.type == "merge.warning"]


def test_a_worker_that_dies_between_commit_and_row_leaves_one_commit(floor: Floor) -> None:
    job_id = floor.order(**PUSHED)
    workshop = floor.workshop
    manifest = floor.hub.store.root / REPO / "mergery.json"

    def cut() -> Any:
        if manifest.exists():
            raise ConnectionError("the machine lost its power")
        return floor.sessions.begin()

    with pytest.raises(ConnectionError):
        run_job(replace(workshop, transaction=cut), job_id, "worker-1")
    assert floor.job(job_id).state == "running"
    with floor.sessions.begin() as session:
        let_lease_run_out(session, job_id)
    with floor.sessions.begin() as session:
        assert lifecycle.recover_lost(session) == [job_id]
    job = floor.run(job_id)
    assert job.state == "succeeded" and commits(floor) == 1
    assert job.result is not None and job.result["commit"] == floor.hub.head(REPO)


def test_inputs_pinned_by_a_first_attempt_stay_pinned_when_a_branch_moves(floor: Floor) -> None:
    job_id = floor.order(**PUSHED)
    floor.hub.faults.add("create", Fault(status=503), times=100)
    assert floor.run(job_id).state == "queued"
    floor.hub.faults.clear()
    pinned = floor.hub.head("team/expert1")
    (floor.hub.store.root / "team/expert1" / "notes.txt").write_text("a new commit")
    assert floor.hub.head("team/expert1") != pinned
    with floor.sessions.begin() as session:
        session.execute(text("UPDATE job SET not_before = NULL"))
    assert floor.run(job_id).state == "succeeded"
    manifest = json.loads(floor.read(REPO, "mergery.json"))
    assert manifest["recipe"]["sources"][0]["model"] == f"team/expert1@{pinned}"


TEXTS = "".join(
    json.dumps({"text": f"the number {number} follows {number - 1}"}) + "\n" for number in range(8)
)


def scored(floor: Floor, **order: Any) -> dict[str, Any]:
    (floor.hub.store.root / "team" / "texts.jsonl").write_text(TEXTS)
    sets = [{"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}]
    return {"evaluate": {"sets": sets, **order}, **PUSHED}


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


def test_a_job_that_takes_too_long_fails_as_timed_out(floor: Floor) -> None:
    slow_uploads(floor, 1.0)
    job = floor.run(floor.order(timeout=0.8, **PUSHED))
    assert (job.state, job.error_code) == ("failed", "timeout")


def test_the_hubs_token_is_nowhere_in_the_database(floor: Floor) -> None:
    job_id = floor.order(**PUSHED)
    floor.hub.faults.add("create", Fault(status=403, message=f"Bearer {TOKEN} may not"))
    floor.run(job_id)
    with floor.sessions() as session:
        tables = session.scalars(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        ).all()
        for table in tables:
            rows = session.execute(text(f"SELECT t::text FROM {table} t")).scalars().all()
            assert not any(TOKEN in (row or "") for row in rows), table
