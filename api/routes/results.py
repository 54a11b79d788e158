"""What a job has made, and how good it is."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.deps import Id, InDesk, Reader, found, own_job
from api.errors import Problem
from api.schemas.common import problems
from api.schemas.results import (
    ArtifactOut,
    ArtifactsOut,
    EvaluationOut,
    EvaluationsOut,
    ExampleOut,
    ExamplesOut,
    ReportOut,
    ScoreOut,
    TrialOut,
    TrialsOut,
    TrialWorkerOut,
)
from db import artifacts, evaluations, reports, trials
from db import scores as known_scores
from db.models.evaluation import Evaluation, EvaluationScore
from db.models.trial import Trial
from jobs.searching import trial_state, workers_of

router = APIRouter(prefix="/v1/jobs/{job_id}", responses=problems(404))


@router.get("/artifacts", tags=["artifacts"])
def list_artifacts(desk: InDesk, caller: Reader, job_id: Id) -> ArtifactsOut:
    """The outputs of a job, with digests."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        return ArtifactsOut(
            data=[ArtifactOut.model_validate(row) for row in artifacts.of_job(session, job.id)]
        )


@router.get("/evaluations", tags=["evaluations"])
def list_evaluations(desk: InDesk, caller: Reader, job_id: Id) -> EvaluationsOut:
    """The scores of the result beside those of its parents."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        return EvaluationsOut(data=[_evaluation(*each) for each in evaluations.of_job(session, job.id)])


@router.get("/evaluations/{evaluation}/examples", tags=["evaluations"])
def list_examples(
    desk: InDesk,
    caller: Reader,
    job_id: Id,
    evaluation: Id,
    metric: Annotated[str | None, Query(max_length=64, description="Default: the first of the set")] = None,
    after: Annotated[int, Query(ge=-1, le=1 << 30, description="The last index that you have")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ExamplesOut:
    """What every model got on every single item of a set, side by side; the set by its id or its name."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        _, scores = found(evaluations.named(session, job.id, evaluation), "evaluation", evaluation)
        named = metric or next((each.metric for each in scores), "")
        asked = {each.subject: each.known_key for each in scores if each.metric == named and each.known_key}
        kept = known_scores.of_keys(session, caller.tenant_id, set(asked.values()))
    values = {name: _values(kept.get(key, ()), named) for name, key in asked.items()}
    total = max(map(len, values.values()), default=0)
    if not total:
        raise Problem("not_found", f"there are no single scores of {evaluation!r} by the metric {named!r}")
    shown = range(after + 1, min(after + 1 + limit, total))
    rows = [
        ExampleOut(index=at, values={name: each[at] for name, each in values.items() if at < len(each)})
        for at in shown
    ]
    return ExamplesOut(
        metric=named, total=total, data=rows, has_more=bool(rows) and rows[-1].index + 1 < total
    )


def _values(scores: Iterable[Mapping[str, Any]], metric: str) -> list[float]:
    """What one model got on every item, by a metric."""
    return next((each.get("per_example") or [] for each in scores if each.get("metric") == metric), [])


@router.get("/trials", tags=["jobs"])
def list_trials(
    desk: InDesk,
    caller: Reader,
    job_id: Id,
    after: Annotated[int, Query(ge=-1, le=1 << 30, description="The last number that you have")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> TrialsOut:
    """What a search has tried so far."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        rows = trials.of_search(session, job.root_id, after, limit + 1)
        workers = workers_of(session, job) if job.kind == "search" else []
        return TrialsOut(
            data=[_trial(row) for row in rows[:limit]],
            has_more=len(rows) > limit,
            workers=[TrialWorkerOut(**each) for each in workers],
        )


@router.get("/report", tags=["jobs"])
def get_report(desk: InDesk, caller: Reader, job_id: Id) -> ReportOut:
    """What the merge did to the weights: norms, similarities, conflicts, changes."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        return ReportOut.model_validate(found(reports.of_job(session, job.id), "report", job.id))


def _trial(row: Trial) -> TrialOut:
    told = row.told or {}
    return TrialOut(
        number=row.number,
        state=trial_state(row),
        worker=row.worker,
        point=row.point,
        values=told.get("values"),
        share=row.share,
        error=told.get("error"),
        seconds=told.get("seconds", 0.0),
        reused=told.get("reused", False),
        elapsed=row.elapsed,
    )


def _evaluation(row: Evaluation, scores: list[EvaluationScore]) -> EvaluationOut:
    return EvaluationOut(
        id=row.id,
        name=row.name,
        kind=row.kind,
        passed=row.passed,
        detail=row.detail,
        task_sha256=row.task_sha256,
        created_at=row.created_at,
        scores=[ScoreOut.model_validate(each) for each in scores],
    )
