"""Queries on jobs and their inputs. Rules are in ``jobs/lifecycle.py``; nothing here decides."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.clock import now, seconds
from db.models.job import Job, JobInput

ACTIVE = ("running", "cancelling")
SWEEP = 500


def get(session: Session, job_id: str) -> Job | None:
    """The job as it is now, whoever owns it."""
    return session.get(Job, job_id, populate_existing=True)


def of_tenant(session: Session, tenant_id: str, job_id: str) -> Job | None:
    """The job if it belongs to this tenant."""
    found = select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
    return session.scalars(found, execution_options={"populate_existing": True}).one_or_none()


def lock(session: Session, job_id: str) -> Job | None:
    """The job, held until the transaction ends."""
    found = select(Job).where(Job.id == job_id).with_for_update()
    return session.scalars(found, execution_options={"populate_existing": True}).one_or_none()


def lock_owned(session: Session, job_id: str, attempt: int, owner: str) -> Job | None:
    """The job, held, if this attempt of this owner still has it."""
    found = select(Job).where(Job.id == job_id, *_owned(attempt, owner)).with_for_update()
    return session.scalars(found, execution_options={"populate_existing": True}).one_or_none()


def page(
    session: Session,
    tenant_id: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    state: str | Sequence[str] | None = None,
    method: str | None = None,
    kind: str | None = None,
    metadata: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Sequence[Job]:
    """Newest first, after the row ``after`` = (created_at, id). Ask for one more than you show to know of
    more.
    """
    rows = select(Job).where(Job.tenant_id == tenant_id)
    if after is not None:
        rows = rows.where(tuple_(Job.created_at, Job.id) < after)
    if state is not None:
        rows = rows.where(Job.state.in_([state] if isinstance(state, str) else state))
    if method is not None:
        rows = rows.where(Job.method == method)
    if kind is not None:
        rows = rows.where(Job.kind == kind)
    if metadata:
        rows = rows.where(Job.metadata_.contains(dict(metadata)))
    if created_after is not None:
        rows = rows.where(Job.created_at > created_after)
    if created_before is not None:
        rows = rows.where(Job.created_at < created_before)
    return session.scalars(rows.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)).all()


def count_states(session: Session, tenant_id: str | None = None) -> dict[tuple[str, str], int]:
    """How many jobs there are for each (queue, state); of all tenants without ``tenant_id``."""
    rows = select(Job.queue, Job.state, func.count()).group_by(Job.queue, Job.state)
    if tenant_id is not None:
        rows = rows.where(Job.tenant_id == tenant_id)
    return {(queue, state): count for queue, state, count in session.execute(rows)}


def count_queued(session: Session, tenant_id: str) -> int:
    """How many jobs of the tenant wait."""
    rows = select(func.count()).where(Job.tenant_id == tenant_id, Job.state == "queued")
    return session.scalar(rows) or 0


def oldest_queued_seconds(session: Session) -> dict[str, float]:
    """For each queue, how long its oldest ready job has waited."""
    age = func.extract("epoch", now() - func.min(Job.created_at))
    rows = select(Job.queue, age).where(Job.state == "queued", _ready()).group_by(Job.queue)
    return {queue: float(waited) for queue, waited in session.execute(rows)}


def queue_position(session: Session, job: Job) -> int | None:
    """1 for the job that is next on its queue, nothing for a job that does not wait."""
    if job.state != "queued":
        return None
    ahead = or_(
        Job.priority > job.priority,
        and_(Job.priority == job.priority, tuple_(Job.created_at, Job.id) < (job.created_at, job.id)),
    )
    rows = select(func.count()).where(Job.state == "queued", Job.queue == job.queue, ahead)
    return (session.scalar(rows) or 0) + 1


def claim(session: Session, job_id: str, owner: str, lease_seconds: float) -> Job | None:
    """Gives a queued, ready job to ``owner``; nothing if somebody was quicker or it is not to run."""
    taken = (
        update(Job)
        .where(Job.id == job_id, Job.state == "queued", _ready(), _unexpired())
        .values(
            state="running",
            phase="resolving",
            progress={},
            attempt=Job.attempt + 1,
            lease_owner=owner,
            lease_until=now() + seconds(lease_seconds),
            heartbeat_at=now(),
            started_at=func.coalesce(Job.started_at, now()),
        )
        .returning(Job)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    return session.scalars(taken).one_or_none()


def beat(session: Session, job_id: str, attempt: int, owner: str, lease_seconds: float) -> tuple[bool] | None:
    """Extends the lease; (whether cancelling was asked for,), or nothing when the fence is stale."""
    row = session.execute(
        update(Job)
        .where(Job.id == job_id, *_owned(attempt, owner))
        .values(lease_until=now() + seconds(lease_seconds), heartbeat_at=now())
        .returning(Job.cancel_requested_at.is_not(None))
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else (bool(row[0]),)


def write_progress(
    session: Session, job_id: str, attempt: int, owner: str, progress: Mapping[str, Any], event_every: float
) -> tuple[bool] | None:
    """Stores progress; (whether an event is due,), or nothing when the fence is stale."""
    due = or_(Job.progress_at.is_(None), Job.progress_at < now() - seconds(event_every))
    locked = (
        select(Job.id, due.label("due")).where(Job.id == job_id, *_owned(attempt, owner)).with_for_update()
    )
    found = session.execute(locked).one_or_none()
    if found is None:
        return None
    values: dict[str, Any] = {"progress": dict(progress)}
    if found.due:
        values["progress_at"] = now()
    session.execute(
        update(Job).where(Job.id == job_id).values(values).execution_options(synchronize_session=False)
    )
    return (bool(found.due),)


def lost(session: Session) -> Sequence[Job]:
    """Jobs whose lease is over, held; those that another process holds are left to it."""
    rows = select(Job).where(Job.state.in_(ACTIVE), Job.lease_until < now())
    return session.scalars(rows.limit(SWEEP).with_for_update(skip_locked=True)).all()


def outdated(session: Session) -> Sequence[Job]:
    """Queued jobs past their ``expires_at``, held."""
    rows = select(Job).where(Job.state == "queued", Job.expires_at <= now())
    return session.scalars(rows.limit(SWEEP).with_for_update(skip_locked=True)).all()


def announce(session: Session, after_seconds: float) -> list[tuple[str, str]]:
    """(id, queue) of ready jobs not announced within ``after_seconds``, marked as announced now."""
    quiet = or_(Job.announced_at.is_(None), Job.announced_at < now() - seconds(after_seconds))
    due = (
        select(Job.id)
        .where(Job.state == "queued", _ready(), _unexpired(), quiet)
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(SWEEP)
        .with_for_update(skip_locked=True)
    )
    ids = session.scalars(due).all()
    if not ids:
        return []
    marked = (
        update(Job)
        .where(Job.id.in_(ids))
        .values(announced_at=now())
        .returning(Job.id, Job.queue)
        .execution_options(synchronize_session=False)
    )
    queues = {row.id: row.queue for row in session.execute(marked)}
    return [(job_id, queues[job_id]) for job_id in ids]


def put_inputs(session: Session, job_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the inputs of a job."""
    session.execute(delete(JobInput).where(JobInput.job_id == job_id))
    values = [{"job_id": job_id, **row} for row in rows]
    if values:
        session.execute(insert(JobInput), values)


def inputs(session: Session, job_id: str) -> Sequence[JobInput]:
    """The pinned inputs of a job, base first."""
    rows = select(JobInput).where(JobInput.job_id == job_id)
    return session.scalars(rows.order_by(JobInput.role != "base", JobInput.role)).all()


def retries(session: Session, root_id: str) -> Sequence[Job]:
    """Every job of a chain of retries, oldest first."""
    return session.scalars(select(Job).where(Job.root_id == root_id).order_by(Job.created_at, Job.id)).all()


def remove(session: Session, job: Job) -> None:
    """Deletes the job with its events, inputs, artifacts and scores."""
    session.execute(delete(Job).where(Job.id == job.id))


def _owned(attempt: int, owner: str) -> tuple[ColumnElement[bool], ...]:
    return Job.attempt == attempt, Job.lease_owner == owner, Job.state.in_(ACTIVE)


def _ready() -> ColumnElement[bool]:
    return or_(Job.not_before.is_(None), Job.not_before <= now())


def _unexpired() -> ColumnElement[bool]:
    return or_(Job.expires_at.is_(None), Job.expires_at > now())
