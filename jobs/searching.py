"""What a search tried, who helps it, and how one of its points becomes an ordinary merge."""

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy.orm import Session

from db import jobs, trials
from db.models.base import new_id
from db.models.job import Job
from db.models.trial import Trial
from jobs import events
from jobs.errors import IllegalState, LeaseLost
from jobs.lifecycle import Fence
from jobs.request import JobRequest, OutputRequest, SearchRequest, as_stored
from jobs.sets import EvaluateRequest, Part
from jobs.states import ACTIVE
from merge.recipe.recipe import recipe_from

HELP = "search_trials"
"""The kind of a job that scores trials of another one, its parent. Nobody can order it."""


class PointRequest(Part):
    """How to merge a point of a search: where the result goes, and what it is scored on."""

    output: OutputRequest = OutputRequest()
    evaluate: EvaluateRequest = EvaluateRequest()


def point_order(job: Job, trial: Trial, request: PointRequest) -> JobRequest:
    """The merge of one candidate, every model pinned as the search had it.

    Raises ``IllegalState`` where the job is no search, or has not pinned its models yet.
    """
    order = searched(job)
    document = order.search.spaces.place(as_sent(job.recipe, order), trial.point)
    return order_at(job, document, request, {"search": job.id, "trial": str(trial.number)})


def order_at(
    job: Job, document: Mapping[str, Any], request: PointRequest, metadata: dict[str, str]
) -> JobRequest:
    """The merge of the recipe at a point of a search. Raises ``RecipeInvalid`` where that is none."""
    return JobRequest(
        recipe=recipe_from(dict(document)),
        output=request.output,
        evaluate=request.evaluate,
        hub_credential=job.hub_credential_id,
        metadata=metadata,
    )


def as_sent(recipe: Mapping[str, Any], order: SearchRequest) -> dict[str, Any]:
    """The recipe of a search as it was ordered, with the models of ``recipe``: that is its plan's, pinned,
    and at the point where the search begins.
    """
    return _with_settings(recipe, order.recipe.model_dump(mode="json"))


def _with_settings(pinned: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The models of one recipe and of its stages, and everything that may vary from the other."""
    sources = [
        {**source, "weight": each["weight"], "settings": each["settings"]}
        for source, each in zip(pinned["sources"], own["sources"], strict=True)
    ]
    stages = {name: _with_settings(pinned["stages"][name], each) for name, each in own["stages"].items()}
    found = {**pinned, "sources": sources, "steps": own["steps"], "overrides": own["overrides"]}
    return found | ({"stages": stages} if stages else {})


def searched(job: Job) -> SearchRequest:
    """The order of a search; raises ``IllegalState`` for jobs of another kind, or not planned yet,
    ``OrderOutdated`` for what this version does not search any more.
    """
    if job.kind != "search":
        raise IllegalState(f"The job {job.id} is a {job.kind}, not a search: it has no points.")
    if job.plan is None:
        raise IllegalState(f"The job {job.id} has not looked at its models yet; wait until it has begun.")
    return as_stored(SearchRequest, job.spec)


def enlist(session: Session, fence: Fence, wanted: int) -> int:
    """Makes jobs that score trials of a running search, until it has ``wanted`` that are not over; gives how
    many it has. They cost the tenant nothing of its quota and end with the search. Raises ``LeaseLost``.
    """
    search = jobs.lock_owned(session, fence.job_id, fence.attempt, fence.owner)
    if search is None:
        raise LeaseLost(fence.job_id, fence.attempt, fence.owner)
    there = len(jobs.unfinished_children(session, search.id))
    for _ in range(wanted - there):
        child = jobs.add(session, _help_for(search), ())
        events.record(session, child, f"{HELP}.queued", {"search": search.id})
    return max(wanted, there)


def _help_for(search: Job) -> dict[str, Any]:
    job_id = new_id("job")
    same = ("tenant_id", "queue", "priority", "max_attempts", "timeout_seconds", "hub_credential_id")
    return {
        "id": job_id,
        "root_id": job_id,
        "parent_id": search.id,
        "kind": HELP,
        "spec": {"kind": HELP},
        "recipe": {},
        "recipe_sha256": search.recipe_sha256,
        **{name: getattr(search, name) for name in same},
    }


def is_searching(moment: tuple[str, str | None] | None) -> bool:
    """Whether a search in this state and phase has candidates scored: only then can it be helped."""
    return moment is not None and moment[0] in ACTIVE and moment[1] == "searching"


def workers_of(session: Session, search: Job) -> list[dict[str, Any]]:
    """Who scores a search's candidates, the job itself first: id, state, how many it has scored, and why it
    failed if it did.
    """
    scored = trials.by_worker(session, search.root_id)
    return [
        {"id": job.id, "state": job.state, "trials": scored.get(job.id, 0), "error": job.error_detail}
        for job in (search, *jobs.children(session, search.id))
    ]


def trial_state(trial: Trial) -> Literal["waiting", "scoring", "scored", "failed"]:
    """What becomes of a candidate."""
    if trial.told is not None:
        return "failed" if trial.told.get("values") is None else "scored"
    return "waiting" if trial.worker is None else "scoring"
