"""What a search tried, and how one of its points becomes an ordinary merge."""

from pydantic import BaseModel, ConfigDict

from db.models.job import Job
from db.models.trial import Trial
from jobs.errors import IllegalState
from jobs.request import EvaluateRequest, JobRequest, OutputRequest, SearchRequest
from merge.recipe import Recipe


class PointRequest(BaseModel):
    """How to merge a point of a search: where the result goes, and what it is scored on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: OutputRequest = OutputRequest()
    evaluate: EvaluateRequest = EvaluateRequest()


def point_order(job: Job, trial: Trial, request: PointRequest) -> JobRequest:
    """The merge of one candidate, every model pinned as the search had it.

    Raises ``IllegalState`` where the job is no search, or has not pinned its models yet.
    """
    order = searched(job)
    document = order.search.spaces.place(job.recipe, trial.point)
    return JobRequest(
        recipe=Recipe.model_validate(document),
        output=request.output,
        evaluate=request.evaluate,
        hub_credential=job.hub_credential_id,
        metadata={"search": job.id, "trial": str(trial.number)},
    )


def searched(job: Job) -> SearchRequest:
    """The order of a search; raises ``IllegalState`` for jobs of another kind, or not planned yet."""
    if job.kind != "search":
        raise IllegalState(f"The job {job.id} is a {job.kind}, not a search: it has no points.")
    if job.plan is None:
        raise IllegalState(f"The job {job.id} has not looked at its models yet; wait until it has begun.")
    return SearchRequest.model_validate(job.spec)
