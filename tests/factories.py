"""Rows for tests, made through the same functions as the service makes them."""

from dataclasses import replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from db import tokens
from db.models.job import Job
from jobs import lifecycle
from jobs.keyring import Keyring
from jobs.keys import Caller, create_key
from jobs.lifecycle import Fence
from jobs.planning import Planned
from jobs.request import JobRequest
from jobs.submit import Rules, submit
from merge.recipe.recipe import recipe_from

TEST_SECRET = "a secret of the tests, thirty-two bytes and more"
RECIPE: dict[str, Any] = {
    "base": "org/base",
    "sources": [
        {"id": "math", "model": "org/math", "weight": 0.6},
        {"id": "code", "model": "org/code", "weight": 0.4},
    ],
    "steps": [{"method": "linear"}],
}


def make_rules(**changes: Any) -> Rules:
    """Generous rules; ``changes`` replace fields."""
    rules = Rules(Keyring(TEST_SECRET), max_queued_jobs=100, max_attempts=3, timeout_seconds=3600.0)
    return replace(rules, **changes)


def make_caller(session: Session, tenant: str = "default", *scopes: str) -> Caller:
    """A caller of a tenant (made when there is none) with a fresh key; all rights unless ``scopes`` are
    given.
    """
    return make_key(session, tenant, *scopes)[0]


def make_key(session: Session, tenant: str = "default", *scopes: str) -> tuple[Caller, str]:
    """As ``make_caller``, with the key's secret."""
    row = tokens.tenant_named(session, tenant)
    key, secret = create_key(session, row.id, "test", scopes or ("admin",))
    return Caller(row.id, key.id, frozenset(key.scopes)), secret


def make_request(**fields: Any) -> JobRequest:
    """An order for a linear merge of two sources; ``fields`` replace parts of the body."""
    recipe = recipe_from(fields.pop("recipe", RECIPE))
    return JobRequest.model_validate({"recipe": recipe, **fields})


def make_job(
    session: Session,
    caller: Caller | None = None,
    *,
    planned: Planned | None = None,
    rules: Rules | None = None,
    **fields: Any,
) -> Job:
    """A queued job; not committed."""
    return submit(
        session, caller or make_caller(session), make_request(**fields), planned, rules or make_rules()
    )


def make_running(
    session: Session, owner: str = "worker-1", lease_seconds: float = 60.0, **fields: Any
) -> tuple[Job, Fence]:
    """A claimed job and its fence; not committed."""
    job = make_job(session, **fields)
    claimed = lifecycle.claim(session, job.id, owner, lease_seconds)
    assert claimed is not None
    return claimed, lifecycle.fence_of(claimed)


def let_lease_run_out(session: Session, job_id: str) -> None:
    """As if the worker had not been heard of for an hour."""
    session.execute(
        text("UPDATE job SET lease_until = clock_timestamp() - interval '1 hour' WHERE id = :id"),
        {"id": job_id},
    )
