"""One more model joins the result of an earlier job: from that job's row to the order of a merge."""

from typing import Literal, Self

from pydantic import Field, model_validator

from db.models.job import Job
from jobs.errors import IllegalState
from jobs.request import JobRequest, ModelOrder, as_stored
from jobs.states import State
from merge.append import Joining, appended, obstacle, state_from
from merge.errors import AppendRefused
from merge.recipe.parts import ModelName, SourceId
from merge.recipe.recipe import Recipe

STATE = "state"
"""Where a job's result holds what a later one needs to go on from it."""


class AppendRequest(ModelOrder):
    """The order to let one more model join the result of an earlier merge: a ``model``, or an ``adapter``
    (with ``member`` one of a bundle) over the base.
    """

    kind: Literal["merge"] = "merge"
    model: ModelName | None = Field(None, description="As in a recipe; nothing: the base, with an adapter")
    adapter: ModelName | None = None
    member: SourceId | None = None
    id: SourceId = Field("joined", description="What the model is called in the recipe")
    weight: float = Field(1.0, description="Factor on its task vector")

    @model_validator(mode="after")
    def _joins(self) -> Self:
        if self.model is None and self.adapter is None:
            raise ValueError("name the model that joins, or an adapter over the base")
        return self

    def order(self, recipe: Recipe) -> JobRequest:
        """The merge that does it."""
        told = {name: getattr(self, name) for name in ModelOrder.model_fields if name != "kind"}
        return JobRequest(recipe=recipe, **told)


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
    recipe = as_stored(Recipe, job.recipe)
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
