"""Queries on what jobs made and on uploaded data sets."""

from collections.abc import Sequence
from typing import Any
from typing import cast as typed

from sqlalchemy import CursorResult, Text, cast, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, undefer

from db.clock import now, seconds
from db.jobs import ACTIVE
from db.models.artifact import Artifact, Dataset
from db.models.base import new_id
from db.models.job import Job

NOTED_SECONDS = 86_400.0
"""Use is noted at most once in so long."""


def put(
    session: Session,
    job_id: str,
    *,
    kind: str,
    uri: str,
    sha256: str | None,
    size: int | None,
    commit_sha: str | None,
) -> str:
    """Records an output; one that is known already is brought up to date. Gives its id."""
    facts = {"sha256": sha256, "size": size, "commit_sha": commit_sha}
    row = insert(Artifact).values(id=new_id("art"), job_id=job_id, kind=kind, uri=uri, **facts)
    row = row.on_conflict_do_update(index_elements=["job_id", "kind", "uri"], set_=facts)
    return session.scalars(row.returning(Artifact.id)).one()


def of_job(session: Session, job_id: str) -> Sequence[Artifact]:
    """The outputs of a job in the order in which they were made."""
    rows = select(Artifact).where(Artifact.job_id == job_id)
    return session.scalars(rows.order_by(Artifact.created_at, Artifact.id)).all()


def put_dataset(session: Session, tenant_id: str, name: str, sha256: str, body: bytes) -> Dataset:
    """Keeps an uploaded file; the same bytes of the same tenant are kept once, keep their first name and
    count as used.
    """
    session.execute(
        insert(Dataset)
        .values(id=new_id("ds"), tenant_id=tenant_id, name=name, sha256=sha256, size=len(body), body=body)
        .on_conflict_do_update(index_elements=["tenant_id", "sha256"], set_={"last_used_at": now()})
    )
    rows = select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.sha256 == sha256)
    return session.scalars(rows).one()


def dataset(session: Session, tenant_id: str, dataset_id: str, *, with_body: bool = False) -> Dataset | None:
    """One data set of a tenant; its bytes only when asked for."""
    rows = select(Dataset).where(Dataset.id == dataset_id, Dataset.tenant_id == tenant_id)
    if with_body:
        rows = rows.options(undefer(Dataset.body))
    return session.scalars(rows).one_or_none()


def use_dataset(
    session: Session, tenant_id: str, dataset_id: str, *, with_body: bool = False
) -> Dataset | None:
    """As ``dataset``, for whoever goes on with it: it counts as used. That is left to somebody else who notes
    it at this moment.
    """
    unnoted = (
        select(Dataset.id)
        .where(
            Dataset.id == dataset_id,
            Dataset.tenant_id == tenant_id,
            Dataset.last_used_at < now() - seconds(NOTED_SECONDS),
        )
        .with_for_update(skip_locked=True)
    )
    noted = update(Dataset).where(Dataset.id.in_(unnoted)).values(last_used_at=now())
    session.execute(noted.execution_options(synchronize_session=False))
    return dataset(session, tenant_id, dataset_id, with_body=with_body)


def prune_datasets(session: Session, keep_seconds: float) -> int:
    """Forgets uploads that nobody has named for ``keep_seconds``, and no job that waits or runs names; says
    how many.
    """
    named = exists().where(
        Job.tenant_id == Dataset.tenant_id,
        Job.state.in_(("queued", *ACTIVE)),
        func.strpos(cast(Job.spec, Text) + cast(Job.recipe, Text), Dataset.id) > 0,
    )
    old = delete(Dataset).where(Dataset.last_used_at < now() - seconds(keep_seconds), ~named)
    gone = session.execute(old.execution_options(synchronize_session=False))
    return typed("CursorResult[Any]", gone).rowcount


def start_of(session: Session, dataset_id: str, count: int) -> bytes:
    """The first bytes of an uploaded file."""
    rows = select(func.substring(Dataset.body, 1, count)).where(Dataset.id == dataset_id)
    return bytes(session.scalar(rows) or b"")


def datasets(session: Session, tenant_id: str) -> Sequence[Dataset]:
    """The data sets of a tenant, newest first, without their bytes."""
    rows = select(Dataset).where(Dataset.tenant_id == tenant_id)
    return session.scalars(rows.order_by(Dataset.created_at.desc(), Dataset.id)).all()


def remove_dataset(session: Session, dataset: Dataset) -> None:
    """Forgets an uploaded file."""
    session.execute(delete(Dataset).where(Dataset.id == dataset.id))
