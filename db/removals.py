"""Queries on the jobs that were deleted."""

from collections.abc import Collection
from typing import Any, cast

from sqlalchemy import CursorResult, delete, exists, select
from sqlalchemy.orm import Session

from db.clock import now, seconds
from db.models.job import Job
from db.models.removal import RemovedJob

YEAR = 365 * 86_400.0


def note(session: Session, job: Job) -> None:
    """Says that this job is deleted."""
    session.add(RemovedJob(job_id=job.id, tenant_id=job.tenant_id))


def among(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of these jobs that were deleted; of one that this database never had nothing is said."""
    there = exists().where(Job.id == RemovedJob.job_id)
    return set(session.scalars(select(RemovedJob.job_id).where(RemovedJob.job_id.in_(job_ids), ~there)))


def prune(session: Session, keep_seconds: float = YEAR) -> int:
    """Forgets which jobs were deleted longer ago; says how many."""
    old = delete(RemovedJob).where(RemovedJob.created_at < now() - seconds(keep_seconds))
    gone = session.execute(old.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", gone).rowcount
