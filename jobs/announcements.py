"""Which events reach webhooks, and what the message says."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from db import webhooks
from db.models.base import new_id
from db.models.job import Job, JobEvent
from jobs.request import ORDERS

ENDPOINT_TEST = "endpoint.test"
EVALUATION_COMPLETED = "evaluation.completed"
ENDINGS = ("succeeded", "failed", "cancelled", "expired")
OPT_IN = frozenset(f"{kind}.progress" for kind in ORDERS)
TYPES = (
    *(f"{kind}.{what}" for kind in ORDERS for what in ("queued", "started", "progress", *ENDINGS)),
    EVALUATION_COMPLETED,
    ENDPOINT_TEST,
)
DEFAULT_TYPES = tuple(each for each in TYPES if each not in OPT_IN and each != ENDPOINT_TEST)
LARGEST_BODY = 20_000
DETAIL_CHARS = 2_000


def queue(session: Session, job: Job, event: JobEvent) -> None:
    """A delivery of the event to each endpoint that wants it; nothing for events that are only listed."""
    if event.type not in TYPES:
        return
    endpoints = webhooks.listening(session, job, event.type, by_name_only=event.type in OPT_IN)
    if not endpoints:
        return
    body = message(event.type, event.at, job_data(job, event))
    for endpoint in endpoints:
        webhooks.add_delivery(
            session,
            endpoint,
            type_=event.type,
            message_id=new_id("msg"),
            body=body,
            job_id=job.id,
            event_seq=event.seq,
        )


def message(type_: str, at: datetime, data: dict[str, Any]) -> str:
    """The body of a webhook, below 20 kB: what is long is left out and ``truncated`` says so."""
    moment = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for leave_out in ((), ("event",), ("event", "result", "metadata")):
        kept = {key: value for key, value in data.items() if key not in leave_out}
        if leave_out:
            kept["truncated"] = True
        body = json.dumps(
            {"type": type_, "timestamp": moment, "data": kept}, separators=(",", ":"), ensure_ascii=False
        )
        if len(body.encode()) < LARGEST_BODY:
            break
    return body


def job_data(job: Job, event: JobEvent) -> dict[str, Any]:
    """What a message says about a job: ids, state and links, never the recipe or a log."""
    data: dict[str, Any] = {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "phase": job.phase,
        "attempt": job.attempt,
        "seq": event.seq,
        "metadata": job.metadata_,
        "url": f"/v1/jobs/{job.id}",
        "event": event.data,
    }
    if job.result is not None:
        data["result"] = job.result
    if job.error_code is not None:
        data["error"] = {"code": job.error_code, "detail": (job.error_detail or "")[:DETAIL_CHARS]}
    return data
