"""Queries on what searches have tried."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models.trial import Trial


def put(session: Session, root_id: str, facts: Mapping[str, Any]) -> None:
    """Keeps a trial; what is there already stays."""
    row = insert(Trial).values(root_id=root_id, **facts)
    session.execute(row.on_conflict_do_nothing(index_elements=["root_id", "key", "share"]))


def of_search(session: Session, root_id: str, after: int = -1, limit: int | None = None) -> list[Trial]:
    """The trials of a search in order, those with numbers above ``after``."""
    rows = select(Trial).where(Trial.root_id == root_id, Trial.number > after).order_by(Trial.number)
    return list(session.scalars(rows if limit is None else rows.limit(limit)))


def count(session: Session, root_id: str) -> int:
    """How many there are."""
    return session.scalar(select(func.count()).select_from(Trial).where(Trial.root_id == root_id)) or 0
