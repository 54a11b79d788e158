"""Queries on webhook endpoints and deliveries."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    bindparam,
    delete,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from db.clock import now, seconds
from db.models.base import new_id
from db.models.job import Job
from db.models.webhook import WebhookDelivery, WebhookEndpoint


def endpoint(session: Session, tenant_id: str, endpoint_id: str) -> WebhookEndpoint | None:
    """One endpoint of a tenant."""
    rows = select(WebhookEndpoint).where(
        WebhookEndpoint.id == endpoint_id, WebhookEndpoint.tenant_id == tenant_id
    )
    return session.scalars(rows, execution_options={"populate_existing": True}).one_or_none()


def endpoints(session: Session, tenant_id: str, job_id: str | None = None) -> Sequence[WebhookEndpoint]:
    """The standing endpoints of a tenant, newest first, or those of one job (the first of its chain)."""
    rows = select(WebhookEndpoint).where(
        WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.job_id == job_id
    )
    return session.scalars(rows.order_by(WebhookEndpoint.created_at.desc(), WebhookEndpoint.id)).all()


def listening(session: Session, job: Job, type_: str, *, by_name_only: bool) -> Sequence[WebhookEndpoint]:
    """Endpoints that want this type from this job, held against their removal until the transaction ends;
    ``by_name_only`` types are not meant by ``*``.
    """
    named = WebhookEndpoint.events.contains([type_])
    wanted = named if by_name_only else or_(named, WebhookEndpoint.events.contains(["*"]))
    rows = select(WebhookEndpoint).where(
        WebhookEndpoint.tenant_id == job.tenant_id,
        or_(WebhookEndpoint.job_id.is_(None), WebhookEndpoint.job_id == job.root_id),
        WebhookEndpoint.disabled_at.is_(None),
        wanted,
    )
    rows = rows.order_by(WebhookEndpoint.id).with_for_update(read=True, key_share=True)
    return session.scalars(rows).all()


def keep_old_secret(session: Session, row: WebhookEndpoint, keep_seconds: float) -> None:
    """Moves the present secret to the old one's place, valid for ``keep_seconds`` more."""
    row.old_key_id, row.old_secret = row.key_id, row.secret
    session.flush()
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == row.id)
        .values(old_secret_until=now() + seconds(keep_seconds))
    )


def enable(session: Session, row: WebhookEndpoint) -> None:
    """Lets deliveries start again with a clean record."""
    row.disabled_at = row.disabled_reason = row.failing_since = None
    session.flush()


def disable(session: Session, endpoint_id: str, reason: str) -> None:
    """Stops an endpoint; what still waits for it is dead. What another process holds at this moment is left
    to it, or the two could block each other; ``claim_due`` comes upon the rest.
    """
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.disabled_at.is_(None))
        .values(disabled_at=now(), disabled_reason=reason)
        .execution_options(synchronize_session=False)
    )
    waiting = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.state == "pending")
        .with_for_update(skip_locked=True)
    )
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(waiting))
        .values(state="dead", lease_owner=None, lease_until=None)
        .execution_options(synchronize_session=False)
    )


def remove(session: Session, row: WebhookEndpoint) -> None:
    """Deletes an endpoint with its deliveries."""
    session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == row.id))


def add_delivery(
    session: Session,
    endpoint_: WebhookEndpoint,
    *,
    type_: str,
    message_id: str,
    body: str,
    job_id: str | None = None,
    event_seq: int | None = None,
) -> WebhookDelivery:
    """A message to be sent as soon as the transaction is committed."""
    row = WebhookDelivery(
        id=new_id("dlv"),
        endpoint_id=endpoint_.id,
        receiver=endpoint_.receiver,
        tenant_id=endpoint_.tenant_id,
        job_id=job_id,
        event_seq=event_seq,
        message_id=message_id,
        type=type_,
        body=body,
    )
    session.add(row)
    session.flush()
    return row


def delivery(
    session: Session, tenant_id: str, delivery_id: str, *, held: bool = False
) -> WebhookDelivery | None:
    """One delivery of a tenant; ``held`` until the transaction ends."""
    rows = select(WebhookDelivery).where(
        WebhookDelivery.id == delivery_id, WebhookDelivery.tenant_id == tenant_id
    )
    rows = rows.with_for_update() if held else rows
    return session.scalars(rows, execution_options={"populate_existing": True}).one_or_none()


def deliveries(
    session: Session,
    endpoint_id: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    state: str | None = None,
) -> Sequence[WebhookDelivery]:
    """Deliveries to an endpoint, newest first, after the row ``after`` = (created_at, id)."""
    rows = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    if after is not None:
        rows = rows.where(tuple_(WebhookDelivery.created_at, WebhookDelivery.id) < after)
    if state is not None:
        rows = rows.where(WebhookDelivery.state == state)
    order = (WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
    return session.scalars(rows.order_by(*order).limit(limit)).all()


def waiting(session: Session) -> tuple[int, float]:
    """How many deliveries are due, and for how many seconds the oldest has been."""
    late = func.extract("epoch", now() - func.min(WebhookDelivery.next_attempt_at))
    rows = select(func.count(), late).where(
        WebhookDelivery.state == "pending", WebhookDelivery.next_attempt_at <= now()
    )
    count, age = session.execute(rows).one()
    return count, float(age or 0.0)


# Few of each receiver, found by stepping from one to the next: however many messages wait for one of them,
# they are not read. The clock is asked once, or no index would help.
_FIRST_OF_EACH = text(
    """
    WITH RECURSIVE receivers AS (
        SELECT min(receiver) AS name FROM webhook_delivery WHERE state = 'pending'
        UNION ALL
        SELECT (SELECT min(receiver) FROM webhook_delivery WHERE state = 'pending' AND receiver > name)
        FROM receivers WHERE name IS NOT NULL
    ), first AS (
        SELECT id FROM receivers CROSS JOIN LATERAL (
            SELECT id, row_number() OVER () AS place FROM (
                SELECT id FROM webhook_delivery
                WHERE receiver = name AND state = 'pending'
                    AND next_attempt_at <= (SELECT clock_timestamp())
                    AND (lease_until IS NULL OR lease_until < (SELECT clock_timestamp()))
                ORDER BY next_attempt_at, id LIMIT :each
            ) AS few
        ) AS numbered
        WHERE place + coalesce((:held ->> name)::int, 0) <= :each
    )
    SELECT id FROM webhook_delivery JOIN first USING (id)
    WHERE state = 'pending' AND next_attempt_at <= clock_timestamp()
        AND (lease_until IS NULL OR lease_until < clock_timestamp())
    ORDER BY next_attempt_at, id LIMIT :limit FOR UPDATE OF webhook_delivery SKIP LOCKED
    """
).bindparams(bindparam("held", type_=JSONB))


def claim_due(
    session: Session, owner: str, limit: int, lease_seconds: float, each: int, held: Mapping[str, int]
) -> list[tuple[WebhookDelivery, WebhookEndpoint, bool]]:
    """Deliveries whose time has come, each given to ``owner`` alone: at most ``limit``, and for one receiver
    at most ``each``, with the number ``held`` that the owner has for it already.

    With each come its endpoint, which may be disabled by now, and whether that one's old secret still holds.
    A delivery whose sender died is given out again when its lease is over.
    """
    asked = {"limit": limit, "each": each, "held": dict(held)}
    ids = session.scalars(_FIRST_OF_EACH, asked).all()
    if not ids:
        return []
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(ids))
        .values(
            lease_owner=owner,
            lease_until=now() + seconds(lease_seconds),
            attempts=WebhookDelivery.attempts + 1,
            attempted_at=now(),
        )
        .execution_options(synchronize_session=False)
    )
    rows = (
        select(
            WebhookDelivery, WebhookEndpoint, func.coalesce(WebhookEndpoint.old_secret_until > now(), False)
        )
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id.in_(ids))
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.id)
    )
    found = session.execute(rows, execution_options={"populate_existing": True})
    return [(row[0], row[1], bool(row[2])) for row in found]


def lock_endpoint(session: Session, endpoint_id: str) -> bool:
    """Holds an endpoint until the transaction ends, and says whether it is still there. Always before its
    deliveries, or two senders block each other.
    """
    rows = select(WebhookEndpoint.id).where(WebhookEndpoint.id == endpoint_id)
    return session.scalar(rows.with_for_update(key_share=True)) is not None


def mark_delivered(session: Session, delivery_id: str, attempt: int, owner: str, status_code: int) -> bool:
    """Ends a delivery well and clears its endpoint's record; false when the sender's lease was taken over."""
    endpoint_id = session.scalar(
        update(WebhookDelivery)
        .where(*_sent_by(delivery_id, attempt, owner))
        .values(
            state="delivered",
            delivered_at=now(),
            status_code=status_code,
            error=None,
            lease_owner=None,
            lease_until=None,
        )
        .returning(WebhookDelivery.endpoint_id)
        .execution_options(synchronize_session=False)
    )
    if endpoint_id is None:
        return False
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.failing_since.is_not(None))
        .values(failing_since=None)
        .execution_options(synchronize_session=False)
    )
    return True


def mark_failed(
    session: Session,
    delivery_id: str,
    attempt: int,
    owner: str,
    *,
    status_code: int | None,
    error: str,
    wait_seconds: float | None,
) -> str | None:
    """Notes a failed try; the next one comes after ``wait_seconds``, none when that is nothing.

    Gives the endpoint's id, or nothing when the sender's lease was taken over.
    """
    values = {
        "state": "dead" if wait_seconds is None else "pending",
        "status_code": status_code,
        "error": error,
        "lease_owner": None,
        "lease_until": None,
        "next_attempt_at": now() + seconds(wait_seconds or 0.0),
    }
    failed = update(WebhookDelivery).where(*_sent_by(delivery_id, attempt, owner)).values(values)
    given = failed.returning(WebhookDelivery.endpoint_id)
    return session.scalar(given.execution_options(synchronize_session=False))


def note_failure(session: Session, endpoint_id: str) -> None:
    """An endpoint fails from now on, if it did not before."""
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.failing_since.is_(None))
        .values(failing_since=now())
        .execution_options(synchronize_session=False)
    )


def failing_for(session: Session, endpoint_id: str, at_least_seconds: float) -> bool:
    """Whether an endpoint has had nothing but failures for so long."""
    rows = select(WebhookEndpoint.id).where(
        WebhookEndpoint.id == endpoint_id,
        WebhookEndpoint.failing_since < now() - seconds(at_least_seconds),
    )
    return session.scalar(rows) is not None


def readdress(session: Session, row: WebhookEndpoint) -> None:
    """What waits for an endpoint goes to the receiver where the endpoint is now."""
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == row.id, WebhookDelivery.state == "pending")
        .values(receiver=row.receiver)
        .execution_options(synchronize_session=False)
    )


def repeat(session: Session, row: WebhookDelivery, endpoint_: WebhookEndpoint) -> None:
    """Makes a delivery due again from the start of the schedule, under the same message id."""
    anew = {"state": "pending", "attempts": 0, "lease_owner": None, "lease_until": None}
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == row.id)
        .values(**anew, receiver=endpoint_.receiver, next_attempt_at=now())
        .execution_options(synchronize_session=False)
    )
    session.refresh(row)


def prune(session: Session, keep_seconds: float) -> int:
    """Forgets messages older than ``keep_seconds`` that will not be sent again; says how many."""
    old = delete(WebhookDelivery).where(
        WebhookDelivery.state != "pending", WebhookDelivery.created_at < now() - seconds(keep_seconds)
    )
    gone = session.execute(old.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", gone).rowcount


def _sent_by(delivery_id: str, attempt: int, owner: str) -> tuple[ColumnElement[bool], ...]:
    return (
        WebhookDelivery.id == delivery_id,
        WebhookDelivery.attempts == attempt,
        WebhookDelivery.lease_owner == owner,
        WebhookDelivery.state == "pending",
    )
