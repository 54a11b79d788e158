"""Queries on what searches have tried, and on what waits to be tried."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, null, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.clock import now
from db.jobs import ACTIVE
from db.models.job import Job
from db.models.trial import Trial

IDENTITY = ("root_id", "key", "share")


def ask(session: Session, root_id: str, wanted: Iterable[Mapping[str, Any]]) -> None:
    """Has trials wait for a worker. What was scored stays, unless its examples are wanted and were not
    kept; what waits already, or is being scored, goes on, timed from now.
    """
    row = insert(Trial).values([{"root_id": root_id, **each} for each in wanted])
    lacking = and_(row.excluded.examples, ~Trial.examples)
    again = row.on_conflict_do_update(
        index_elements=IDENTITY,
        set_={
            "told": null(),
            "worker": case((Trial.told.is_(None), Trial.worker)),
            "examples": row.excluded.examples,
            "elapsed": row.excluded.elapsed,
            "created_at": now(),
        },
        where=or_(Trial.told.is_(None), lacking),
    )
    session.execute(again)


def claim(session: Session, root_id: str, worker: str, attempt: int) -> Trial | None:
    """Gives the first trial that nobody scores to this attempt of this job; nothing where none waits."""
    free = or_(Trial.worker.is_(None), ~_held())
    first = (
        select(Trial.key, Trial.share)
        .where(Trial.root_id == root_id, Trial.told.is_(None), free)
        .order_by(Trial.number)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte()
    )
    taken = (
        update(Trial)
        .where(Trial.root_id == root_id, Trial.key == first.c.key, Trial.share == first.c.share)
        .values(worker=worker, attempt=attempt)
        .returning(Trial)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    return session.scalars(taken).one_or_none()


def finish(session: Session, trial: Trial, told: Mapping[str, Any]) -> bool:
    """Keeps what a trial scored, if this worker still has it; says whether it did."""
    kept = (
        update(Trial)
        .where(
            Trial.root_id == trial.root_id, Trial.key == trial.key, Trial.share == trial.share,
            Trial.told.is_(None), Trial.worker == trial.worker, Trial.attempt == trial.attempt,
        )
        .values(
            told=dict(told), elapsed=Trial.elapsed + func.extract("epoch", now() - Trial.created_at)
        )
        .returning(Trial.number)
        .execution_options(synchronize_session=False)
    )  # fmt: skip
    return session.scalar(kept) is not None


def of_search(session: Session, root_id: str, after: int = -1, limit: int | None = None) -> list[Trial]:
    """The trials of a search in order, those with numbers above ``after``; also those that wait."""
    rows = select(Trial).where(Trial.root_id == root_id, Trial.number > after).order_by(Trial.number)
    return list(session.scalars(rows if limit is None else rows.limit(limit)))


def standing(session: Session, root_id: str) -> tuple[int, float]:
    """How many trials of a search are not scored yet, and the shares of those that are, added up."""
    is_open = Trial.told.is_(None)
    counted = select(
        func.count().filter(is_open), func.coalesce(func.sum(Trial.share).filter(~is_open), 0.0)
    ).where(Trial.root_id == root_id)
    left, spent = session.execute(counted).one()
    return int(left), float(spent)


def by_worker(session: Session, root_id: str) -> dict[str, int]:
    """How many trials of a search each job has scored."""
    scored = Trial.root_id == root_id, Trial.told.is_not(None), Trial.worker.is_not(None)
    rows = select(Trial.worker, func.count()).where(*scored).group_by(Trial.worker)
    return {str(worker): count for worker, count in session.execute(rows)}


def forget_open(session: Session, root_id: str) -> None:
    """Forgets the trials that were not scored."""
    session.execute(delete(Trial).where(Trial.root_id == root_id, Trial.told.is_(None)))


def _held() -> ColumnElement[bool]:
    """Whether the attempt that took a trial is still at work, by the lease of its job."""
    return exists().where(
        Job.id == Trial.worker,
        Job.attempt == Trial.attempt,
        Job.state.in_(ACTIVE),
        Job.lease_until > now(),
    )
