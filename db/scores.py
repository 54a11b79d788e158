"""Queries on scores that are known already."""

from collections.abc import Collection, Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, delete, exists, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.clock import now, seconds
from db.models.evaluation import EvaluationScore
from db.models.score import KnownScore

NOTED_SECONDS = 86_400.0
"""Use is noted at most once in so long."""


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


def recall(session: Session, tenant_id: str, keys: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """As ``of_keys``, for whoever goes on with them: they count as used. Rows that somebody else notes at
    this moment are left to it.
    """
    unnoted = (
        select(KnownScore.key)
        .where(
            KnownScore.tenant_id == tenant_id,
            KnownScore.key.in_(keys),
            KnownScore.last_used_at < now() - seconds(NOTED_SECONDS),
        )
        .with_for_update(skip_locked=True)
    )
    noted = update(KnownScore).where(KnownScore.tenant_id == tenant_id, KnownScore.key.in_(unnoted))
    session.execute(noted.values(last_used_at=now()).execution_options(synchronize_session=False))
    return of_keys(session, tenant_id, keys)


def prune(session: Session, keep_seconds: float) -> int:
    """Forgets what was of no use for ``keep_seconds``; says how many. What a job's evaluation shows stays
    with it.
    """
    shown = exists().where(EvaluationScore.known_key == KnownScore.key)
    old = delete(KnownScore).where(KnownScore.last_used_at < now() - seconds(keep_seconds), ~shown)
    gone = session.execute(old.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", gone).rowcount
