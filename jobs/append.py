"""One more model joins the result of an earlier job: from that job's row to the order of a merge."""

from db.models.job import Job
from jobs.errors import IllegalState
from jobs.request import AppendRequest, JobRequest
from jobs.states import State
from merge.append import Joining, appended, obstacle, state_from
from merge.errors import AppendRefused
from merge.recipe import Recipe

STATE = "state"
"""Where a job's result holds what a later one needs to go on from it."""


def can_append(job: Job) -> bool:
    """Whether a model can join what the job has made."""
    return job.state == State.SUCCEEDED and bool(job.result and job.result.get(STATE))


def append_order(job: Job, request: AppendRequest) -> JobRequest:
    """The order by which a model joins the result of ``job``, which it names by the job's id.

    Raises ``IllegalState`` where the job has no result, ``AppendRefused`` where nothing can join it.
    """
    if job.state != State.SUCCEEDED:
        raise IllegalState(f"The job {job.id} is {job.state}; only a model that was made can be appended to.")
    if job.kind != "merge":
        raise AppendRefused(f"{job.id} is a job of kind {job.kind}; a model can join a merge alone.")
    recipe = Recipe.model_validate(job.recipe)
    problem = obstacle(recipe)
    if problem is not None:
        raise AppendRefused(f"{job.id} cannot be appended to: {problem}.")
    kept = (job.result or {}).get(STATE)
    if kept is None:
        raise AppendRefused(
            f"{job.id} cannot be appended to: nothing was kept to go on from (opcm's scope must be global); "
            "run the merge again."
        )
    joining = Joining(request.model, request.adapter, request.member, request.id, request.weight)
    return request.order(appended(recipe, state_from(kept), job.id, joining))
