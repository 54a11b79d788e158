"""Queries on jobs that are to be deleted and that were."""

from collections.abc import Collection, Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, delete, exists, select
from sqlalchemy.orm import Session, aliased

from db.clock import now, seconds
from db.jobs import ACTIVE, SWEEP
from db.models.job import Job, JobInput
from db.models.removal import RemovedJob
from db.models.webhook import WebhookDelivery

YEAR = 365 * 86_400.0


def readers(session: Session, job: Job) -> Sequence[str]:
    """Jobs of the same tenant, not over yet, that read what this one has made."""
    folders = (
        select(Job.id, JobInput.repo)
        .join(JobInput, JobInput.job_id == Job.id)
        .where(Job.tenant_id == job.tenant_id, Job.state.in_(("queued", *ACTIVE)), JobInput.kind == "folder")
        .cte()
        .prefix_with("MATERIALIZED")
    )
    rows = select(folders.c.id).where(folders.c.repo.contains(job.id, autoescape=True)).distinct()
    return session.scalars(rows.order_by(folders.c.id)).all()


def outlived(session: Session, keep_seconds: float) -> Sequence[Job]:
    """Whole jobs that ended more than ``keep_seconds`` ago, were not tried again and have no message that is
    still to be sent; at most a few hundred at once.
    """
    again = aliased(Job)
    tried_again = exists().where(again.root_id == Job.id, again.id != Job.id)
    waiting = exists().where(WebhookDelivery.job_id == Job.id, WebhookDelivery.state == "pending")
    rows = select(Job).where(
        Job.finished_at < now() - seconds(keep_seconds), Job.parent_id.is_(None), ~tried_again, ~waiting
    )
    return session.scalars(rows.limit(SWEEP)).all()


def note(session: Session, job: Job) -> None:
    """Says that this job is deleted."""
    session.add(RemovedJob(job_id=job.id, tenant_id=job.tenant_id))


def remove(session: Session, job: Job) -> None:
    """Deletes the job with its events, inputs, artifacts and scores, and notes that for those who keep files
    of it.
    """
    note(session, job)
    session.execute(delete(Job).where(Job.id == job.id))


def among(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of these jobs that were deleted; of one that this database never had nothing is said."""
    there = exists().where(Job.id == RemovedJob.job_id)
    return set(session.scalars(select(RemovedJob.job_id).where(RemovedJob.job_id.in_(job_ids), ~there)))


def prune(session: Session, keep_seconds: float = YEAR) -> int:
    """Forgets which jobs were deleted longer ago; says how many."""
    old = delete(RemovedJob).where(RemovedJob.created_at < now() - seconds(keep_seconds))
    gone = session.execute(old.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", gone).rowcount
