"""Workers that help a search: the same numbers in the same order, nothing lost, nothing scored twice."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from db import jobs, trials
from db.models.job import Job
from jobs import lifecycle
from jobs.errors import LeaseLost, QuotaExceeded
from jobs.lifecycle import Fence
from jobs.searching import HELP, enlist, is_searching, trial_state, workers_of
from jobs.submit import submit
from tests.factories import make_caller, make_request, make_rules
from tests.worker.conftest import Floor
from tests.worker.test_search_job import ordered, ran, rows
from worker import candidates
from worker.run_job import run_job
from worker.trials import Rows

LEVELS = {"settings": {"levels": 6}}


def helpers(floor: Floor, job_id: str) -> list[Job]:
    with floor.sessions() as session:
        return list(jobs.children(session, job_id))


def without_times(found: Any) -> list[dict[str, Any]]:
    return [{**row.told, "seconds": 0.0, "number": row.number, "point": row.point} for row in found]


def in_turns(monkeypatch: pytest.MonkeyPatch) -> dict[str, threading.Event]:
    """The search scores its first candidate only after a helper has scored one, by name of their threads."""
    real, helped = candidates.Bench.told, threading.Event()
    called = threading.Event()

    def told(self: candidates.Bench, candidate: Any) -> Any:
        if threading.current_thread().name == "search":
            called.set()
            assert helped.wait(60)
            return real(self, candidate)
        answer = real(self, candidate)
        helped.set()
        return answer

    monkeypatch.setattr(candidates.Bench, "told", told)
    return {"called": called, "helped": helped}


def test_with_help_a_search_finds_the_same_and_each_candidate_is_scored_once(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ran(floor, ordered(floor, LEVELS))
    with floor.sessions.begin() as session:
        session.execute(text("DELETE FROM known_score"))
    turns = in_turns(monkeypatch)
    job_id = ordered(floor, LEVELS, workers=2)
    search = threading.Thread(target=lambda: run_job(floor.workshop, job_id, "worker-1"), name="search")
    search.start()
    assert turns["called"].wait(60)
    (helper,) = helpers(floor, job_id)
    assert run_job(floor.workshop, helper.id, "worker-2") == "succeeded"
    search.join(60)
    job = floor.job(job_id)
    assert job.state == "succeeded" and alone.result is not None and job.result is not None
    assert without_times(rows(floor, job)) == without_times(rows(floor, alone))
    assert job.result["best"] == alone.result["best"]
    with floor.sessions() as session:
        told = workers_of(session, job)
    assert [each["id"] for each in told] == [job_id, helper.id]
    assert all(each["trials"] > 0 for each in told) and sum(each["trials"] for each in told) == 6
    assert floor.job(helper.id).result == {"trials": told[1]["trials"]}


def test_nobody_who_helps_is_seen_or_counted_and_all_end_with_the_search(floor: Floor) -> None:
    job = ran(floor, ordered(floor, LEVELS, workers=4))
    told = helpers(floor, job.id)
    assert [each.state for each in told] == ["cancelled"] * 3
    assert {each.tenant_id for each in told} == {job.tenant_id} and {each.kind for each in told} == {HELP}
    with floor.sessions() as session:
        assert [each.id for each in jobs.page(session, job.tenant_id, limit=9)] == [job.id]
        assert jobs.of_tenant(session, job.tenant_id, told[0].id) is None
        assert jobs.count_states(session, job.tenant_id) == {("cpu", "succeeded"): 1}


def searching(floor: Floor, workers: int = 3) -> tuple[str, Fence]:
    """A search that was claimed and has its phase, and has its helpers in the queue."""
    job_id = ordered(floor, LEVELS, workers=workers)
    with floor.sessions.begin() as session:
        job = lifecycle.claim(session, job_id, "worker-1", 60)
        assert job is not None
        fence = lifecycle.fence_of(job)
        lifecycle.enter_phase(session, fence, "searching")
        enlist(session, fence, workers - 1)
    return job_id, fence


def test_helpers_are_made_once_and_take_nothing_of_the_quota(floor: Floor) -> None:
    job_id, fence = searching(floor)
    with floor.sessions.begin() as session:
        assert enlist(session, fence, 2) == 2 and len(jobs.children(session, job_id)) == 2
        with pytest.raises(LeaseLost):
            enlist(session, replace(fence, attempt=2), 2)
        caller = make_caller(session)
        one = make_rules(max_queued_jobs=1)
        submit(session, caller, make_request(), None, one)
        with pytest.raises(QuotaExceeded):
            submit(session, caller, make_request(), None, one)


def test_a_cancelled_search_takes_its_helpers_along(floor: Floor) -> None:
    job_id, fence = searching(floor)
    busy, idle = helpers(floor, job_id)
    with floor.sessions.begin() as session:
        assert lifecycle.claim(session, busy.id, "worker-2", 60) is not None
    floor.cancel(job_id)
    assert [each.state for each in helpers(floor, job_id)] == ["cancelling", "cancelled"]
    with floor.sessions.begin() as session:
        lifecycle.finish_cancel(session, fence)
        lifecycle.recover_lost(session)
    assert floor.job(idle.id).state == "cancelled"


def test_who_helps_makes_room_while_the_search_waits_for_a_worker_itself(floor: Floor) -> None:
    assert is_searching(("running", "searching")) and not is_searching(("running", "downloading"))
    job_id, fence = searching(floor)
    with floor.sessions.begin() as session:
        lifecycle.release(session, fence)
        assert not is_searching(jobs.moment(session, job_id))
    (first, _) = helpers(floor, job_id)
    assert floor.run(first.id).result == {"trials": 0}
    assert "downloading" not in [event.data.get("phase") for event in floor.events(first.id)]


def wait_for_one(floor: Floor, root_id: str, **more: Any) -> None:
    facts = {"key": "k", "share": 1.0, "number": 0, "point": {"scale": 0.5}, "elapsed": 1.0}
    with floor.sessions.begin() as session:
        trials.ask(session, root_id, [{**facts, "examples": False, **more}])


def test_a_trial_of_a_worker_that_vanished_is_taken_back_and_its_late_word_is_not_heard(floor: Floor) -> None:
    job_id, fence = searching(floor, workers=2)
    (helper,) = helpers(floor, job_id)
    wait_for_one(floor, job_id)
    with floor.sessions.begin() as session:
        assert lifecycle.claim(session, helper.id, "worker-2", 60) is not None
        held = trials.claim(session, job_id, helper.id, 1)
        assert held is not None and trial_state(held) == "scoring"
        session.expunge(held)
    with floor.sessions.begin() as session:
        assert trials.claim(session, job_id, job_id, fence.attempt) is None
        session.execute(text("UPDATE job SET lease_until = now() WHERE id = :id"), {"id": helper.id})
        again = trials.claim(session, job_id, job_id, fence.attempt)
        assert again is not None
        assert not trials.finish(session, held, {"values": [9.0]})
        assert trials.finish(session, again, {"values": [1.0]})
        assert not trials.finish(session, again, {"values": [2.0]})
    (row,) = rows(floor, floor.job(job_id))
    assert row.told == {"values": [1.0]} and row.elapsed >= 1.0 and trial_state(row) == "scored"


def test_what_was_scored_stays_unless_its_examples_are_wanted_too(floor: Floor) -> None:
    job_id, fence = searching(floor)
    wait_for_one(floor, job_id)
    with floor.sessions.begin() as session:
        held = trials.claim(session, job_id, job_id, fence.attempt)
        assert held is not None and trials.finish(session, held, {"values": [1.0]})
    wait_for_one(floor, job_id)
    assert rows(floor, floor.job(job_id))[0].told == {"values": [1.0]}
    wait_for_one(floor, job_id, examples=True)
    (row,) = rows(floor, floor.job(job_id))
    assert row.told is None and row.worker is None and row.examples and trial_state(row) == "waiting"


def test_what_nobody_will_score_any_more_is_forgotten(floor: Floor) -> None:
    job_id, fence = searching(floor)
    wait_for_one(floor, job_id)
    with floor.sessions.begin() as session:
        held = trials.claim(session, job_id, job_id, fence.attempt)
        assert held is not None and trials.finish(session, held, {"values": [1.0]})
    wait_for_one(floor, job_id, key="other", number=1)
    Rows(floor.sessions.begin, job_id, dict).close()
    assert [row.key for row in rows(floor, floor.job(job_id))] == ["k"]
