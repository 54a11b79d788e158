"""Merge jobs that are stopped, retried, lost or late: nothing is made twice, and nothing is missed."""

import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from hub.folder_faults import Fault
from jobs import lifecycle
from jobs.submit import retry
from tests.factories import let_lease_run_out, make_caller, make_rules
from tests.waiting import until
from tests.worker.conftest import Floor, family_recipe
from tests.worker.merging import PUSHED, REPO, commits, slow_weights, start, undisturbed
from worker import merge_job
from worker.board import Board
from worker.run_job import run_job
from worker.workshop import Workshop


def slow_uploads(floor: Floor, seconds: float = 0.25) -> None:
    floor.hub.faults.add("preupload", Fault(delay=seconds), times=1000)


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


def test_a_job_that_is_cancelled_right_before_its_commit_sends_none(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = floor.order(**PUSHED)
    write = merge_job.write_card

    def cancel(*arguments: Any) -> None:
        write(*arguments)
        floor.cancel(job_id)

    monkeypatch.setattr(merge_job, "write_card", cancel)
    job = floor.run(job_id, heartbeat_seconds=15.0)
    assert job.state == "cancelled" and commits(floor) == 0
    assert warnings(floor, job_id) == [], "nothing can be there"


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


def test_a_job_that_takes_too_long_fails_as_timed_out(floor: Floor) -> None:
    slow_uploads(floor, 1.0)
    job = floor.run(floor.order(timeout=0.8, **PUSHED))
    assert (job.state, job.error_code) == ("failed", "timeout")
