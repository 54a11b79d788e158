"""Queries on kept answers."""

from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.clock import now, seconds
from db.models.idempotency import IdempotencyKey


def reserve(
    session: Session,
    tenant_id: str,
    key: str,
    request_hash: str,
    owner: str,
    *,
    lease_seconds: float,
    keep_seconds: float,
) -> bool:
    """Gives a free key to ``owner``: a new one, one whose answer is too old, or one whose owner is late."""
    facts = {
        "request_hash": request_hash,
        "status": 0,
        "body": {},
        "owner": owner,
        "reserved_until": now() + seconds(lease_seconds),
    }
    free = or_(IdempotencyKey.reserved_until < now(), ~_kept(keep_seconds))
    taken = (
        insert(IdempotencyKey)
        .values(tenant_id=tenant_id, key=key, **facts)
        .on_conflict_do_update(
            index_elements=["tenant_id", "key"], set_={**facts, "created_at": now()}, where=free
        )
        .returning(IdempotencyKey.key)
    )
    return session.execute(taken).one_or_none() is not None


def find(session: Session, tenant_id: str, key: str, keep_seconds: float) -> IdempotencyKey | None:
    """The key, reserved or answered, unless it is too old."""
    rows = select(IdempotencyKey).where(_is(tenant_id, key), _kept(keep_seconds))
    return session.scalars(rows, execution_options={"populate_existing": True}).one_or_none()


def finish(session: Session, tenant_id: str, key: str, owner: str, status: int, body: dict[str, Any]) -> bool:
    """Keeps the answer if ``owner`` still holds the key."""
    kept = (
        update(IdempotencyKey)
        .where(_is(tenant_id, key), IdempotencyKey.owner == owner)
        .values(status=status, body=body, owner=None, reserved_until=None)
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    )
    return session.execute(kept).one_or_none() is not None


def release(session: Session, tenant_id: str, key: str, owner: str) -> None:
    """Frees a key that ``owner`` holds and will not answer."""
    session.execute(delete(IdempotencyKey).where(_is(tenant_id, key), IdempotencyKey.owner == owner))


def prune(session: Session, keep_seconds: float) -> int:
    """Deletes answers older than ``keep_seconds``; says how many."""
    old = delete(IdempotencyKey).where(~_kept(keep_seconds))
    return len(session.scalars(old.returning(IdempotencyKey.key)).all())


def _is(tenant_id: str, key: str) -> ColumnElement[bool]:
    return (IdempotencyKey.tenant_id == tenant_id) & (IdempotencyKey.key == key)


def _kept(keep_seconds: float) -> ColumnElement[bool]:
    return IdempotencyKey.created_at > now() - seconds(keep_seconds)
