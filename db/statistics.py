"""Queries on statistics of models on data."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, undefer

from db.clock import now
from db.models.statistic import Statistic


def put(session: Session, tenant_id: str, digest: str, facts: Mapping[str, Any]) -> None:
    """Records statistics, or that known ones were used just now; their stamp is brought up to date."""
    row = insert(Statistic).values(tenant_id=tenant_id, digest=digest, last_used_at=now(), **facts)
    again = {"last_used_at": now(), "size": row.excluded.size}
    again["stamp"] = func.coalesce(row.excluded.stamp, Statistic.stamp)
    session.execute(row.on_conflict_do_update(index_elements=["tenant_id", "digest"], set_=again))


def touch(session: Session, tenant_id: str, digest: str) -> None:
    """They were used just now."""
    own = (Statistic.tenant_id == tenant_id, Statistic.digest == digest)
    session.execute(update(Statistic).where(*own).values(last_used_at=now()))


def held(session: Session, tenant_id: str, digests: Collection[str]) -> set[str]:
    """Those of these digests that a tenant has."""
    rows = select(Statistic.digest).where(Statistic.tenant_id == tenant_id, Statistic.digest.in_(digests))
    return set(session.scalars(rows))


def model_of_stamp(session: Session, tenant_id: str, stamp: str) -> str | None:
    """The digest of the model in a folder that was measured before and that nobody has touched since."""
    rows = select(Statistic.model_sha256).where(Statistic.tenant_id == tenant_id, Statistic.stamp == stamp)
    return session.scalars(rows.limit(1)).first()


def get(session: Session, tenant_id: str, digest: str) -> Statistic | None:
    """One of a tenant's, with its manifest."""
    rows = select(Statistic).where(Statistic.tenant_id == tenant_id, Statistic.digest == digest)
    return session.scalars(rows.options(undefer(Statistic.manifest))).one_or_none()


def page(
    session: Session, tenant_id: str, *, limit: int, after: tuple[datetime, str] | None = None
) -> Sequence[Statistic]:
    """Newest first, without manifests. Ask for one more than you show to know of more."""
    rows = select(Statistic).where(Statistic.tenant_id == tenant_id)
    if after is not None:
        rows = rows.where(tuple_(Statistic.created_at, Statistic.digest) < after)
    ordered = rows.order_by(Statistic.created_at.desc(), Statistic.digest.desc())
    return session.scalars(ordered.limit(limit)).all()


def oldest(session: Session) -> Sequence[tuple[str, str, int]]:
    """(tenant, digest, size) of everything that is kept, what was used longest ago first."""
    rows = select(Statistic.tenant_id, Statistic.digest, Statistic.size)
    return [(row[0], row[1], row[2]) for row in session.execute(rows.order_by(Statistic.last_used_at))]


def remove(session: Session, tenant_id: str, digest: str) -> None:
    """Forgets statistics."""
    own = (Statistic.tenant_id == tenant_id, Statistic.digest == digest)
    session.execute(delete(Statistic).where(*own))
