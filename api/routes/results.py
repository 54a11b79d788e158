"""What a job has made, and how good it is."""

from fastapi import APIRouter

from api.deps import Id, InDesk, Reader, found
from api.schemas.common import problems
from api.schemas.results import (
    ArtifactOut,
    ArtifactsOut,
    EvaluationOut,
    EvaluationsOut,
    ReportOut,
    ScoreOut,
)
from db import artifacts, evaluations, jobs, reports
from db.models.evaluation import Evaluation, EvaluationScore

router = APIRouter(prefix="/v1/jobs/{job_id}", responses=problems(404))


@router.get("/artifacts", tags=["artifacts"])
def list_artifacts(desk: InDesk, caller: Reader, job_id: Id) -> ArtifactsOut:
    """The outputs of a job, with digests."""
    with desk.read() as session:
        job = found(jobs.of_tenant(session, caller.tenant_id, job_id), "job", job_id)
        return ArtifactsOut(
            data=[ArtifactOut.model_validate(row) for row in artifacts.of_job(session, job.id)]
        )


@router.get("/evaluations", tags=["evaluations"])
def list_evaluations(desk: InDesk, caller: Reader, job_id: Id) -> EvaluationsOut:
    """The scores of the result beside those of its parents."""
    with desk.read() as session:
        job = found(jobs.of_tenant(session, caller.tenant_id, job_id), "job", job_id)
        return EvaluationsOut(data=[_evaluation(*each) for each in evaluations.of_job(session, job.id)])


@router.get("/report", tags=["jobs"])
def get_report(desk: InDesk, caller: Reader, job_id: Id) -> ReportOut:
    """What the merge did to the weights: norms, similarities, conflicts, changes."""
    with desk.read() as session:
        job = found(jobs.of_tenant(session, caller.tenant_id, job_id), "job", job_id)
        return ReportOut.model_validate(found(reports.of_job(session, job.id), "report", job.id))


def _evaluation(row: Evaluation, scores: list[EvaluationScore]) -> EvaluationOut:
    return EvaluationOut(
        id=row.id,
        name=row.name,
        kind=row.kind,
        passed=row.passed,
        detail=row.detail,
        created_at=row.created_at,
        scores=[ScoreOut.model_validate(each) for each in scores],
    )
