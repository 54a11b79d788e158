"""Queries on what happened to a job."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, exists, insert, literal, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from db.models.job import Job, JobEvent


def append(session: Session, job: Job, type_: str, data: Mapping[str, Any]) -> JobEvent:
    """Takes the next number of the job, which holds its row, and writes the event under it: one statement."""
    session.flush()
    taken = (
        update(Job)
        .where(Job.id == job.id)
        .values(event_seq=Job.event_seq + 1)
        .returning(Job.id, Job.event_seq)
        .cte("taken")
    )
    named = literal(type_), literal(dict(data), JSONB)
    made = (
        insert(JobEvent)
        .from_select(["job_id", "seq", "type", "data"], select(taken.c.id, taken.c.event_seq, *named))
        .returning(JobEvent)
        .execution_options(synchronize_session=False)
    )
    event = session.scalars(made).one()
    set_committed_value(job, "event_seq", event.seq)
    return event


def after(session: Session, job_id: str, seq: int, limit: int) -> Sequence[JobEvent]:
    """Events with a number above ``seq``, in order."""
    rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > seq)
    return session.scalars(rows.order_by(JobEvent.seq).limit(limit)).all()


def newest(session: Session, job_id: str, before: int, limit: int) -> Sequence[JobEvent]:
    """Events with a number below ``before``, newest first, without progress."""
    rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq < before, ~_is_progress())
    return session.scalars(rows.order_by(JobEvent.seq.desc()).limit(limit)).all()


def marks(session: Session, job_id: str, before: int) -> Sequence[JobEvent]:
    """Where attempts and phases began and what was measured, below ``before``, in order."""
    mark = or_(*(JobEvent.type.like(f"%.{end}") for end in ("started", "phase", "measured")))
    rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq < before, mark)
    return session.scalars(rows.order_by(JobEvent.seq)).all()


def progress(session: Session, job_id: str, before: int, most: int) -> Sequence[JobEvent]:
    """Progress below ``before``, in order; of very many, about ``most`` evenly spread ones."""
    step = max(1, before // most)
    rows = select(JobEvent).where(
        JobEvent.job_id == job_id, JobEvent.seq < before, JobEvent.seq % step == 0, _is_progress()
    )
    return session.scalars(rows.order_by(JobEvent.seq)).all()


def has_entered(session: Session, job_id: str, phase: str) -> bool:
    """Whether any attempt of a job has come to this phase."""
    found = exists().where(
        JobEvent.job_id == job_id, JobEvent.type.like("%.phase"), JobEvent.data["phase"].astext == phase
    )
    return bool(session.scalar(select(found)))


def _is_progress() -> ColumnElement[bool]:
    return JobEvent.type.like("%.progress")


def latest(session: Session, job_id: str, types: Sequence[str]) -> datetime | None:
    """When the last event of one of these types happened."""
    rows = select(JobEvent.at).where(JobEvent.job_id == job_id, JobEvent.type.in_(types))
    return session.scalar(rows.order_by(JobEvent.seq.desc()).limit(1))
