"""Queries on the fronts of searches."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models.front import Front


def put(session: Session, job_id: str, body: Mapping[str, Any]) -> None:
    """Keeps the front of a job, in place of an earlier one."""
    row = insert(Front).values(job_id=job_id, body=dict(body))
    session.execute(row.on_conflict_do_update(index_elements=["job_id"], set_={"body": dict(body)}))


def of_job(session: Session, job_id: str) -> dict[str, Any] | None:
    """The front of a job, if it has one."""
    return session.scalars(select(Front.body).where(Front.job_id == job_id)).one_or_none()
