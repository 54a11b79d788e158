"""Queries on scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models.base import new_id
from db.models.evaluation import Evaluation, EvaluationScore


def put(
    session: Session,
    job_id: str,
    *,
    name: str,
    kind: str,
    passed: bool | None,
    detail: Mapping[str, Any],
    scores: Iterable[Mapping[str, Any]],
    task_sha256: str | None = None,
) -> str:
    """Records one evaluation set with its scores, in place of an earlier one of that name. Gives its id."""
    facts = {"kind": kind, "passed": passed, "detail": dict(detail), "task_sha256": task_sha256}
    row = insert(Evaluation).values(id=new_id("eval"), job_id=job_id, name=name, **facts)
    row = row.on_conflict_do_update(index_elements=["job_id", "name"], set_=facts)
    evaluation_id = session.scalars(row.returning(Evaluation.id)).one()
    session.execute(delete(EvaluationScore).where(EvaluationScore.evaluation_id == evaluation_id))
    values = [{"evaluation_id": evaluation_id, **score} for score in scores]
    if values:
        session.execute(insert(EvaluationScore), values)
    return evaluation_id


def of_job(session: Session, job_id: str) -> list[tuple[Evaluation, list[EvaluationScore]]]:
    """The evaluations of a job with their scores, the result's before the parents'."""
    rows = select(Evaluation).where(Evaluation.job_id == job_id)
    found = session.scalars(rows.order_by(Evaluation.created_at, Evaluation.id)).all()
    scores = _scores(session, [each.id for each in found])
    return [(each, [score for score in scores if score.evaluation_id == each.id]) for each in found]


def named(session: Session, job_id: str, name: str) -> tuple[Evaluation, Sequence[EvaluationScore]] | None:
    """One evaluation of a job, by its id or its name, with its scores."""
    rows = select(Evaluation).where(
        Evaluation.job_id == job_id, or_(Evaluation.id == name, Evaluation.name == name)
    )
    found = session.scalars(rows.limit(1)).first()
    return None if found is None else (found, _scores(session, [found.id]))


def _scores(session: Session, evaluation_ids: Sequence[str]) -> Sequence[EvaluationScore]:
    rows = select(EvaluationScore).where(EvaluationScore.evaluation_id.in_(evaluation_ids))
    parent = func.split_part(EvaluationScore.subject, ":", 1) != "result"
    order = (parent, EvaluationScore.subject, EvaluationScore.metric)
    return session.scalars(rows.order_by(*order)).all()
