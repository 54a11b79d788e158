"""Queries on merge reports."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models.report import MergeReport


def put(session: Session, job_id: str, survey: Mapping[str, Any]) -> None:
    """Keeps the report of a job, in place of an earlier one."""
    row = insert(MergeReport).values(job_id=job_id, survey=dict(survey))
    session.execute(row.on_conflict_do_update(index_elements=["job_id"], set_={"survey": dict(survey)}))


def of_job(session: Session, job_id: str) -> dict[str, Any] | None:
    """The survey of a job's merge, if there is one."""
    return session.scalars(select(MergeReport.survey).where(MergeReport.job_id == job_id)).one_or_none()


def has(session: Session, job_id: str) -> bool:
    """Whether a job has a report."""
    return bool(session.scalar(select(exists().where(MergeReport.job_id == job_id))))
