"""The same key, the same answer; nothing is kept of what failed."""

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from db import jobs
from jobs import idempotency
from jobs.errors import IdempotencyInProgress, IdempotencyMismatch, RequestInvalid
from jobs.idempotency import Replay, request_hash
from tests.factories import make_caller, make_job

HASH = request_hash("POST", "/v1/jobs", {"a": 1})


def test_the_second_request_gets_the_first_answer(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        assert idempotency.begin(session, caller.tenant_id, "k", HASH) is None
        job = make_job(session, caller)
        idempotency.finish(session, caller.tenant_id, "k", HASH, 202, {"id": job.id})
    with sessions.begin() as session:
        assert idempotency.begin(session, caller.tenant_id, "k", HASH) == Replay(202, {"id": job.id})


def test_another_body_under_the_same_key_is_refused(session: Session) -> None:
    caller = make_caller(session)
    idempotency.finish(session, caller.tenant_id, "k", HASH, 202, {})
    with pytest.raises(IdempotencyMismatch):
        idempotency.begin(session, caller.tenant_id, "k", request_hash("POST", "/v1/jobs", {"a": 2}))


def test_while_the_first_is_being_answered_the_second_is_told_so(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
    with sessions() as one, sessions() as two:
        assert idempotency.begin(one, caller.tenant_id, "k", HASH) is None
        with pytest.raises(IdempotencyInProgress):
            idempotency.begin(two, caller.tenant_id, "k", HASH)
        assert idempotency.begin(two, caller.tenant_id, "other", HASH) is None


def test_a_rolled_back_request_leaves_neither_key_nor_job(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
    with sessions() as session:
        idempotency.begin(session, caller.tenant_id, "k", HASH)
        job = make_job(session, caller)
        idempotency.finish(session, caller.tenant_id, "k", HASH, 202, {"id": job.id})
        session.rollback()
    with sessions.begin() as session:
        assert idempotency.begin(session, caller.tenant_id, "k", HASH) is None
        assert jobs.get(session, job.id) is None


def test_tenants_do_not_share_keys(session: Session) -> None:
    one, two = make_caller(session, "one"), make_caller(session, "two")
    idempotency.finish(session, one.tenant_id, "k", HASH, 202, {"secret": 1})
    assert idempotency.begin(session, two.tenant_id, "k", HASH) is None


def test_answers_are_forgotten_after_three_days(session: Session) -> None:
    caller = make_caller(session)
    idempotency.finish(session, caller.tenant_id, "k", HASH, 202, {"n": 1})
    session.execute(text("UPDATE idempotency_key SET created_at = created_at - interval '73 h'"))
    assert idempotency.begin(session, caller.tenant_id, "k", HASH) is None
    idempotency.finish(session, caller.tenant_id, "k", HASH, 202, {"n": 2})
    assert idempotency.begin(session, caller.tenant_id, "k", HASH) == Replay(202, {"n": 2})
    assert idempotency.prune(session) == 0
    session.execute(text("UPDATE idempotency_key SET created_at = created_at - interval '73 h'"))
    assert idempotency.prune(session) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "ü", "a\nb"])
def test_unfit_keys_are_refused(session: Session, key: str) -> None:
    with pytest.raises(RequestInvalid, match="Idempotency-Key"):
        idempotency.begin(session, "ten_x", key, HASH)


def test_the_hash_ignores_the_order_of_fields_but_not_the_path() -> None:
    assert request_hash("post", "/v1/jobs", {"b": 2, "a": 1}) == request_hash(
        "POST", "/v1/jobs", {"a": 1, "b": 2}
    )
    assert request_hash("POST", "/v1/plans", {"a": 1}) != HASH
    assert request_hash("POST", "/v1/jobs", b"a: 1") != HASH
