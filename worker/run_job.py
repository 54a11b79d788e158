"""From a message to an ended job: claim it, do it under a lease, record how it ended whatever happened."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import structlog

from db import jobs as rows
from db.models.job import Job
from jobs import credentials, lifecycle
from jobs.errors import IllegalState, LeaseLost
from jobs.lifecycle import Fence
from jobs.planning import Planner
from jobs.request import JobRequest
from jobs.states import State
from jobs.statistics import Shelf
from worker import device as devices
from worker.context import JobContext, storable
from worker.endings import Failure, describe, settle_stop
from worker.errors import Interrupted, Unexpected
from worker.measuring import Measurer
from worker.merge_job import MergeJob, recipe_of
from worker.scratch import WorkFolder
from worker.statistics import Store
from worker.workshop import Workshop

log = structlog.get_logger("worker.run_job")

ENDING_TRIES = 5
ENDING_PAUSE_SECONDS = 1.0


def run_job(workshop: Workshop, job_id: str, owner: str) -> str | None:
    """Runs the job if it can be claimed; its state afterwards, or ``None`` if there was nothing to claim."""
    with workshop.transaction() as session:
        job = lifecycle.claim(session, job_id, owner, workshop.settings.lease_seconds)
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
        except Exception as error:
            failure = describe(error)
            log.warning("job_not_begun", code=failure.code, detail=failure.detail)
            state = _end(context, lambda session: _fail(session, fence, failure))
    devices.release_cached_memory(workshop.device)
    return state


def _attempt(workshop: Workshop, job: Job, context: JobContext, work: WorkFolder) -> str | None:
    token: str | None = None
    try:
        devices.confirm(workshop.device)
        token = _open_token(workshop, job)
        with _store(workshop, job) as store, closing(_planner(workshop, store)) as planner:
            measurer = Measurer(workshop, job.tenant_id, context, work, store)
            result = _merge_job(workshop, job, context, work, planner, measurer, token).run()
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


def _planner(workshop: Workshop, store: Store) -> Planner:
    """What a plan counts on as measured is held from then on."""
    settings = workshop.settings
    return Planner(
        lambda tenant, token: workshop.hub(token, tenant),
        settings.model_roots,
        settings.memory_budget_bytes,
        shelf=Shelf(workshop.transaction, lambda _, digest: store.hold(digest)),
        data_bytes=settings.max_calibration_bytes,
        gpu_from_seconds=settings.gpu_measuring_seconds,
    )


def _merge_job(
    workshop: Workshop,
    job: Job,
    context: JobContext,
    work: WorkFolder,
    planner: Planner,
    measurer: Measurer,
    token: str | None,
) -> MergeJob:
    with workshop.transaction() as session:
        pinned = rows.inputs(session, job.id)
    commits = {row.role: f"{row.repo}@{row.sha}" for row in pinned if row.sha is not None}
    return MergeJob(
        workshop,
        job,
        JobRequest.model_validate(job.spec),
        recipe_of(job, commits),
        context,
        work,
        planner,
        measurer,
        workshop.hub(token, job.tenant_id),
        token,
    )


def _open_token(workshop: Workshop, job: Job) -> str | None:
    if job.hub_credential_id is None:
        return None
    with workshop.transaction() as session:
        return credentials.open_token(session, workshop.keyring, job.tenant_id, job.hub_credential_id)


def _fail(session: Any, fence: Fence, failure: Failure) -> str:
    detail, findings = storable(failure.detail), storable(failure.findings)
    job = lifecycle.fail(session, fence, failure.code, detail, findings, retryable=failure.retryable)
    return job.state


def _end(context: JobContext, record: Callable[[Any], str | None]) -> str | None:
    """Records an ending, patiently; ``None`` if the job is another's by now or the database stays away."""
    for number in range(ENDING_TRIES):
        try:
            with context.transaction() as session:
                state = record(session)
            log.info("job_ended", state=state, seconds=round(context.seconds, 2))
            return state
        except (LeaseLost, IllegalState) as error:
            log.warning("ending_not_ours", error=str(error))
            return None
        except Exception as error:
            log.warning("ending_not_recorded", error=str(error), number=number)
            time.sleep(ENDING_PAUSE_SECONDS)
    return None
