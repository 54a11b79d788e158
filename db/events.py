"""Queries on what happened to a job."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from db.models.job import Job, JobEvent


def append(session: Session, job: Job, type_: str, data: Mapping[str, Any]) -> JobEvent:
    """Takes the next number of the job, which holds its row, and writes the event under it."""
    session.flush()
    seq = session.scalars(
        update(Job)
        .where(Job.id == job.id)
        .values(event_seq=Job.event_seq + 1)
        .returning(Job.event_seq)
        .execution_options(synchronize_session=False)
    ).one()
    set_committed_value(job, "event_seq", seq)
    event = JobEvent(job_id=job.id, seq=seq, type=type_, data=dict(data))
    session.add(event)
    session.flush()
    return event


def after(session: Session, job_id: str, seq: int, limit: int) -> Sequence[JobEvent]:
    """Events with a number above ``seq``, in order."""
    rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > seq)
    return session.scalars(rows.order_by(JobEvent.seq).limit(limit)).all()


def latest(session: Session, job_id: str, types: Sequence[str]) -> datetime | None:
    """When the last event of one of these types happened."""
    rows = select(JobEvent.at).where(JobEvent.job_id == job_id, JobEvent.type.in_(types))
    return session.scalar(rows.order_by(JobEvent.seq.desc()).limit(1))
