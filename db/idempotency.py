"""Queries on kept answers."""

from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.clock import now, seconds
from db.models.idempotency import IdempotencyKey


def try_lock(session: Session, tenant_id: str, key: str) -> bool:
    """Takes the key for this transaction; false when another transaction has it."""
    number = func.hashtextextended(f"{tenant_id} {key}", 0)
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(number))))


def find(session: Session, tenant_id: str, key: str, keep_seconds: float) -> IdempotencyKey | None:
    """The kept answer unless it is too old."""
    rows = select(IdempotencyKey).where(
        IdempotencyKey.tenant_id == tenant_id,
        IdempotencyKey.key == key,
        IdempotencyKey.created_at > now() - seconds(keep_seconds),
    )
    return session.scalars(rows, execution_options={"populate_existing": True}).one_or_none()


def put(
    session: Session, tenant_id: str, key: str, request_hash: str, status: int, body: dict[str, Any]
) -> None:
    """Keeps an answer; an outdated one under the same key is replaced."""
    facts = {"request_hash": request_hash, "status": status, "body": body}
    row = insert(IdempotencyKey).values(tenant_id=tenant_id, key=key, **facts)
    session.execute(
        row.on_conflict_do_update(index_elements=["tenant_id", "key"], set_={**facts, "created_at": now()})
    )


def prune(session: Session, keep_seconds: float) -> int:
    """Deletes answers older than ``keep_seconds``; says how many."""
    old = delete(IdempotencyKey).where(IdempotencyKey.created_at < now() - seconds(keep_seconds))
    return len(session.scalars(old.returning(IdempotencyKey.key)).all())
