"""The same key, the same answer; nothing is kept of what failed."""

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from db import jobs
from jobs import idempotency
from jobs.errors import IdempotencyInProgress, IdempotencyMismatch, RequestInvalid
from jobs.idempotency import Replay, Reservation, request_hash
from tests.factories import make_caller, make_job

HASH = request_hash("POST", "/v1/jobs", {"a": 1})


def held(found: Reservation | Replay) -> Reservation:
    assert isinstance(found, Reservation)
    return found


def test_the_second_request_gets_the_first_answer(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        mine = held(idempotency.reserve(session, caller.tenant_id, "k", HASH))
    with sessions.begin() as session:
        job = make_job(session, caller)
        idempotency.finish(session, mine, 202, {"id": job.id})
    with sessions.begin() as session:
        assert idempotency.reserve(session, caller.tenant_id, "k", HASH) == Replay(202, {"id": job.id})


def test_another_body_under_the_same_key_is_refused(session: Session) -> None:
    caller = make_caller(session)
    mine = held(idempotency.reserve(session, caller.tenant_id, "k", HASH))
    other = request_hash("POST", "/v1/jobs", {"a": 2})
    with pytest.raises(IdempotencyMismatch):
        idempotency.reserve(session, caller.tenant_id, "k", other)
    idempotency.finish(session, mine, 202, {})
    with pytest.raises(IdempotencyMismatch):
        idempotency.reserve(session, caller.tenant_id, "k", other)


def test_while_the_first_is_being_answered_the_second_is_told_so(session: Session) -> None:
    caller = make_caller(session)
    mine = held(idempotency.reserve(session, caller.tenant_id, "k", HASH))
    with pytest.raises(IdempotencyInProgress):
        idempotency.reserve(session, caller.tenant_id, "k", HASH)
    held(idempotency.reserve(session, caller.tenant_id, "other", HASH))
    idempotency.release(session, mine)
    held(idempotency.reserve(session, caller.tenant_id, "k", HASH))


def test_a_rolled_back_request_leaves_no_job_and_no_answer(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        mine = held(idempotency.reserve(session, caller.tenant_id, "k", HASH))
    with sessions() as session:
        job_id = make_job(session, caller).id
        idempotency.finish(session, mine, 202, {"id": job_id})
        session.rollback()
    with sessions.begin() as session:
        with pytest.raises(IdempotencyInProgress):
            idempotency.reserve(session, caller.tenant_id, "k", HASH)
        assert jobs.get(session, job_id) is None


def test_the_key_of_a_process_that_died_is_free_again_and_its_late_answer_is_refused(
    sessions: sessionmaker[Session],
) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        dead = held(idempotency.reserve(session, caller.tenant_id, "k", HASH, lease_seconds=-1))
    with sessions.begin() as session:
        second = held(idempotency.reserve(session, caller.tenant_id, "k", HASH))
    with sessions() as session:
        job = make_job(session, caller)
        with pytest.raises(IdempotencyInProgress):
            idempotency.finish(session, dead, 202, {"id": job.id})
        session.rollback()
    with sessions.begin() as session:
        idempotency.release(session, dead)
        idempotency.finish(session, second, 202, {"id": "job_second"})
        assert idempotency.reserve(session, caller.tenant_id, "k", HASH) == Replay(202, {"id": "job_second"})


def test_tenants_do_not_share_keys(session: Session) -> None:
    one, two = make_caller(session, "one"), make_caller(session, "two")
    idempotency.finish(session, held(idempotency.reserve(session, one.tenant_id, "k", HASH)), 202, {"x": 1})
    theirs = held(idempotency.reserve(session, two.tenant_id, "k", HASH))
    idempotency.finish(session, theirs, 202, {"x": 2})
    for tenant, number in ((one, 1), (two, 2)):
        assert idempotency.reserve(session, tenant.tenant_id, "k", HASH) == Replay(202, {"x": number})


def test_answers_are_forgotten_after_three_days(session: Session) -> None:
    caller = make_caller(session)
    age = text("UPDATE idempotency_key SET created_at = created_at - interval '73 h'")
    for number in (1, 2):
        mine = held(idempotency.reserve(session, caller.tenant_id, "k", HASH))
        idempotency.finish(session, mine, 202, {"n": number})
        assert idempotency.reserve(session, caller.tenant_id, "k", HASH) == Replay(202, {"n": number})
        assert idempotency.prune(session) == 0
        session.execute(age)
    assert idempotency.prune(session) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "ü", "a\nb"])
def test_unfit_keys_are_refused(session: Session, key: str) -> None:
    with pytest.raises(RequestInvalid, match="Idempotency-Key"):
        idempotency.reserve(session, "ten_x", key, HASH)


def test_the_hash_ignores_the_order_of_fields_but_not_the_path() -> None:
    assert request_hash("post", "/v1/jobs", {"b": 2, "a": 1}) == request_hash(
        "POST", "/v1/jobs", {"a": 1, "b": 2}
    )
    assert request_hash("POST", "/v1/plans", {"a": 1}) != HASH
    assert request_hash("POST", "/v1/jobs", b"a: 1") != HASH
