"""Queries on scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select
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
) -> str:
    """Records one evaluation set with its scores, in place of an earlier one of that name. Gives its id."""
    facts = {"kind": kind, "passed": passed, "detail": dict(detail)}
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


def _scores(session: Session, evaluation_ids: Sequence[str]) -> Sequence[EvaluationScore]:
    rows = select(EvaluationScore).where(EvaluationScore.evaluation_id.in_(evaluation_ids))
    order = (EvaluationScore.subject != "result", EvaluationScore.subject, EvaluationScore.metric)
    return session.scalars(rows.order_by(*order)).all()
