"""Queries on scores that are known already."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models.score import KnownScore


def put(
    session: Session, tenant_id: str, key: str, scores: Sequence[dict[str, Any]], *, model: str, task: str
) -> None:
    """Keeps the scores of one model on one set, by their digests; what is there already stays."""
    facts = {"scores": list(scores), "model_sha256": model, "task_sha256": task}
    row = insert(KnownScore).values(tenant_id=tenant_id, key=key, **facts)
    session.execute(row.on_conflict_do_nothing(index_elements=["tenant_id", "key"]))


def of_keys(session: Session, tenant_id: str, keys: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The known scores among these keys of a tenant."""
    rows = select(KnownScore.key, KnownScore.scores).where(
        KnownScore.tenant_id == tenant_id, KnownScore.key.in_(keys)
    )
    return {row.key: row.scores for row in session.execute(rows)}
