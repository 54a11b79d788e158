"""What happened to a job, numbered; the one place where events are written and announcements are queued."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from db import events
from db.models.job import Job, JobEvent
from jobs import announcements


def record(session: Session, job: Job, type_: str, data: Mapping[str, Any] | None = None) -> int:
    """Writes an event and, in the same transaction, a delivery to every endpoint that wants it; gives its
    number.

    ``type_`` is one of ``jobs.announcements.TYPES``, which reach webhooks, or a type for event lists only,
    such as ``merge.phase``, ``merge.planned``, ``merge.requeued``, ``merge.cancelling``, ``merge.artifact``,
    ``merge.measured``, ``merge.warning`` and ``search.candidates``.
    """
    event = events.append(session, job, type_, data or {})
    announcements.queue(session, job, event)
    return event.seq


def after(session: Session, job_id: str, seq: int, limit: int = 100) -> Sequence[JobEvent]:
    """Events of a job with a number above ``seq``, in order, at most ``limit``."""
    return events.after(session, job_id, seq, limit)
