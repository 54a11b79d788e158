"""Scores that are known: found by their key, kept while they are of use."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db import evaluations, scores
from tests.factories import make_caller, make_running

TOLD = [{"task": "texts", "metric": "perplexity", "value": 3.0}]
DAY = 86_400.0


@pytest.fixture
def tenant(session: Session) -> str:
    return make_caller(session).tenant_id


def put(session: Session, tenant: str, *keys: str, unused_days: float = 0.0) -> None:
    for key in keys:
        scores.put(session, tenant, key, TOLD, model="m", task="t")
    age = {"keys": list(keys), "seconds": unused_days * DAY}
    session.execute(
        text(
            "UPDATE known_score SET last_used_at = clock_timestamp() - make_interval(secs => :seconds) "
            "WHERE key = ANY(:keys)"
        ),
        age,
    )


def kept(session: Session) -> set[str]:
    return set(session.scalars(text("SELECT key FROM known_score")))


def test_scores_that_nobody_asked_for_in_a_long_time_are_forgotten(session: Session, tenant: str) -> None:
    put(session, tenant, "old", unused_days=31)
    put(session, tenant, "fresh", unused_days=29)
    assert scores.prune(session, 30 * DAY) == 1
    assert kept(session) == {"fresh"}


def test_a_score_that_is_found_again_is_kept(session: Session, tenant: str) -> None:
    put(session, tenant, "asked", "other", unused_days=31)
    assert scores.recall(session, tenant, ["asked", "unknown"]) == {"asked": TOLD}
    assert scores.prune(session, 30 * DAY) == 1
    assert kept(session) == {"asked"}


def test_to_look_at_scores_is_no_use_of_them(session: Session, tenant: str) -> None:
    put(session, tenant, "shown", unused_days=31)
    assert scores.of_keys(session, tenant, ["shown"]) == {"shown": TOLD}
    assert scores.prune(session, 30 * DAY) == 1


def test_scores_whose_items_a_job_shows_stay_as_long_as_the_job(session: Session, tenant: str) -> None:
    put(session, tenant, "of a job", unused_days=31)
    job, _ = make_running(session)
    told: dict[str, Any] = {"subject": "result", "metric": "perplexity", "value": 3.0}
    facts: dict[str, Any] = {"kind": "perplexity", "passed": None, "detail": {}}
    evaluations.put(session, job.id, name="texts", scores=[told | {"known_key": "of a job"}], **facts)
    assert scores.prune(session, 30 * DAY) == 0
    session.execute(text("DELETE FROM job"))
    assert scores.prune(session, 30 * DAY) == 1
    assert kept(session) == set()
