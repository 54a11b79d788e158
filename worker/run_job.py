"""From a message to an ended job: claim it, do it under a lease, record how it ended whatever happened."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from db import jobs as rows
from db.models.job import Job
from db.session import Session, is_away, storable
from jobs import credentials, lifecycle
from jobs.bundles import recipe_of_member
from jobs.errors import IllegalState, LeaseLost
from jobs.lifecycle import Fence
from jobs.planning import Planner
from jobs.request import (
    JobRequest,
    MaterialiseRequest,
    ModelOrder,
    RouterRequest,
    ScoreRequest,
    SearchRequest,
    as_stored,
)
from jobs.searching import HELP, as_sent
from jobs.states import State
from jobs.statistics import Shelf
from merge.recipe.recipe import Recipe
from worker import device as devices
from worker import scratch
from worker.attempt import Attempt
from worker.context import JobContext
from worker.endings import Failure, describe, settle_stop
from worker.errors import Interrupted, Stop, Unexpected
from worker.merge_job import MergeJob
from worker.router_job import RouterJob
from worker.score_job import ScoreJob, pinned_order
from worker.scratch import WorkFolder
from worker.search_job import SearchJob
from worker.statistics import Store
from worker.workshop import Workshop

log = structlog.get_logger("worker.run_job")

ENDING_PAUSE_SECONDS = 1.0


Claim = Callable[[Session, str, str, float], Job | None]


def run_next(workshop: Workshop, job_id: str, owner: str) -> str | None:
    """As ``run_job``, for whichever job is next in the queue of the one that was announced."""
    return run_job(workshop, job_id, owner, lifecycle.claim_next)


def run_job(workshop: Workshop, job_id: str, owner: str, claim: Claim = lifecycle.claim) -> str | None:
    """Runs the job if it can be claimed; its state afterwards, or ``None`` if there was nothing to claim.

    Raises ``DeviceMissing`` or ``DiskUnusable``, and claims nothing, where this worker could run no job.
    """
    devices.confirm(workshop.device)
    scratch.confirm(workshop.settings.scratch)
    with workshop.transaction() as session:
        job = claim(session, job_id, owner, workshop.settings.lease_seconds)
    if job is None:
        log.info("nothing_to_claim", job_id=job_id)
        return None
    structlog.contextvars.bind_contextvars(job_id=job.id, attempt=job.attempt, tenant=job.tenant_id)
    try:
        return _run_claimed(workshop, job, lifecycle.fence_of(job))
    finally:
        structlog.contextvars.clear_contextvars()


def _run_claimed(workshop: Workshop, job: Job, fence: Fence) -> str | None:
    log.info("job_claimed", kind=job.kind, owner=fence.owner)
    context = JobContext(
        workshop.transaction, fence, workshop.rhythm, job.timeout_seconds, board=workshop.board
    )
    with context:
        try:
            with WorkFolder(workshop.settings.scratch, job.root_id) as work:
                state = _attempt(workshop, job, context, work)
                if state is not None and state != State.QUEUED:
                    work.finish(keep=state != State.SUCCEEDED)
        except SystemExit:
            # What SIGTERM is to a child: service managers send it to every process, not to the parent alone.
            _end(context, lambda session: settle_stop(session, fence, context.reason or Stop.SHUTDOWN))
            raise
        except Exception as error:
            failure = describe(error)
            log.warning("job_not_begun", code=failure.code, detail=failure.detail)
            state = _end(context, lambda session: _fail(session, fence, failure))
    devices.release_cached_memory(workshop.device)
    return state


def _attempt(workshop: Workshop, job: Job, context: JobContext, work: WorkFolder) -> str | None:
    token: str | None = None
    try:
        token = _open_token(workshop, job)
        with _store(workshop, job) as store, closing(_planner(workshop, store, context)) as planner:
            hub = workshop.hub(token, context.pause)
            result = STORIES[job.kind](Attempt(workshop, job, context, work, store, planner, hub, token))
        return _end(context, lambda session: lifecycle.succeed(session, context.fence, result).state)
    except Exception as error:
        reason = error.reason if isinstance(error, Interrupted) else context.reason
        if reason is not None:
            log.info("job_stopped", reason=reason.value)
            return _end(context, lambda session: settle_stop(session, context.fence, reason))
        failure = describe(error, secret=token)
        known = failure.code != Unexpected.code
        log.warning("job_failed", code=failure.code, detail=failure.detail, exc_info=None if known else error)
        return _end(context, lambda session: _fail(session, context.fence, failure))


def _store(workshop: Workshop, job: Job) -> Store:
    return Store(workshop.settings.data_dir / "statistics", job.tenant_id)


def _planner(workshop: Workshop, store: Store, context: JobContext) -> Planner:
    """What a plan counts on as measured is held from then on."""
    settings = workshop.settings
    return Planner(
        partial(workshop.hub, sleep=context.pause),
        settings.model_roots,
        settings.memory_budget_bytes,
        shelf=Shelf(workshop.transaction, lambda _, digest: store.hold(digest)),
        data_bytes=settings.max_calibration_bytes,
        gpu_from_seconds=settings.gpu_measuring_seconds,
    )


def _merge(at: Attempt) -> dict[str, Any]:
    return _made(at, as_stored(JobRequest, at.job.spec), as_stored(Recipe, at.job.recipe))


def _materialise(at: Attempt) -> dict[str, Any]:
    """A merge of one source; what was not planned when it was ordered has no recipe yet."""
    request = as_stored(MaterialiseRequest, at.job.spec)
    if "steps" in at.job.recipe:
        return _made(at, request, as_stored(Recipe, at.job.recipe))
    at.context.checkpoint()
    return _made(at, request, recipe_of_member(request, at.asking))


def _made(at: Attempt, request: ModelOrder, recipe: Recipe) -> dict[str, Any]:
    """The model that a recipe gives; where it names branches still, the commits of an earlier attempt do."""
    return MergeJob(**vars(at), request=request, recipe=recipe.renamed(at.pinned())).run()


def _router(at: Attempt) -> dict[str, Any]:
    """On the commits that were looked at when it was ordered."""
    request = as_stored(RouterRequest, at.job.spec)
    pinned = {"bundle": at.job.recipe["bundle"]}
    if request.base is not None and "base" in at.job.recipe:
        pinned["base"] = at.job.recipe["base"]
    return RouterJob(**vars(at), request=request.model_copy(update=pinned)).run()


def _score(at: Attempt) -> dict[str, Any]:
    request = as_stored(ScoreRequest, at.job.spec)
    return ScoreJob(**vars(at), request=pinned_order(request, at.pinned())).run()


def _search(at: Attempt) -> dict[str, Any]:
    return _searching(at).run()


def _searching(at: Attempt) -> SearchJob:
    request = as_stored(SearchRequest, at.job.spec)
    recipe = as_stored(Recipe, as_sent(at.job.recipe, request)).renamed(at.pinned())
    return SearchJob(**vars(at), request=request.model_copy(update={"recipe": recipe}))


def _search_trials(at: Attempt) -> dict[str, Any]:
    """Helps the search that the job is a part of, with the models that the search has pinned."""
    with at.workshop.transaction() as session:
        search = rows.get(session, at.job.parent_id or "")
    assert search is not None  # its parts go with it
    return _searching(replace(at, job=search)).help()


STORIES: dict[str, Callable[[Attempt], dict[str, Any]]] = {
    "merge": _merge,
    "materialise": _materialise,
    "router": _router,
    "score": _score,
    "search": _search,
    HELP: _search_trials,
}
"""How each kind of job is done; what comes back is its result."""


def _open_token(workshop: Workshop, job: Job) -> str | None:
    if job.hub_credential_id is None:
        return None
    with workshop.transaction() as session:
        return credentials.open_token(session, workshop.keyring, job.tenant_id, job.hub_credential_id)


def _fail(session: Session, fence: Fence, failure: Failure) -> str:
    job = lifecycle.fail(
        session,
        fence,
        failure.code,
        storable(failure.detail),
        failure.findings,
        retryable=failure.retryable,
        at_least=failure.wait,
        counts=failure.counts,
    )
    return job.state


def _end(context: JobContext, record: Callable[[Session], str | None]) -> str | None:
    """Records an ending; ``None`` if the job is another's by now, or the database stays away for as long as
    the job may be held. Raises what the database has against the ending itself.
    """
    until = time.monotonic() + context.rhythm.lease
    while True:
        try:
            with context.transaction() as session:
                state = record(session)
            context.over()
            log.info("job_ended", state=state, seconds=round(context.seconds, 2))
            return state
        except (LeaseLost, IllegalState) as error:
            log.warning("ending_not_ours", error=str(error))
            return None
        except Exception as error:
            log.warning("ending_not_recorded", error=str(error))
            if not is_away(error):
                raise
            if time.monotonic() > until:
                return None
            time.sleep(ENDING_PAUSE_SECONDS)
