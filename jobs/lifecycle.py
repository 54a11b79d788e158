"""What may happen to a job after it was accepted. A worker's writes carry its fence; a stale one writes
nothing.

Nothing here commits: the caller's transaction holds the move, its event and its announcements together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db import jobs, removals
from db.clock import now, seconds
from db.events import has_entered
from db.models.job import Job
from jobs import events, tally
from jobs.errors import IllegalState, LeaseLost, NotFound
from jobs.states import PHASES, State, is_terminal, may_move

PROGRESS_EVENT_SECONDS = 1.0
BACKOFF_SECONDS = 5.0
LONGEST_BACKOFF_SECONDS = 300.0
DOUBLINGS = 6  # the pause is the longest then; attempts that do not count may be thousands
LONGEST_ASKED_SECONDS = 3600.0
"""However late a Hub says that it can be asked again."""
WITH_PARTS = ("search",)
"""Kinds of jobs that other jobs may be parts of."""
EXPIRED = "expired"
WORKER_LOST = "worker_lost"
LOST_DETAIL = (
    "The worker stopped without a word {attempts} times, the last time in phase {phase}. The likely cause is "
    "an out-of-memory kill: lower the memory budget, or run the job on a machine with more memory."
)


@dataclass(frozen=True)
class Fence:
    """Proof of ownership: this attempt of this job by this worker."""

    job_id: str
    attempt: int
    owner: str


@dataclass(frozen=True)
class Beat:
    """The answer to a heartbeat."""

    cancel_requested: bool


def fence_of(job: Job) -> Fence:
    """The fence of a job that was just claimed."""
    return Fence(job.id, job.attempt, job.lease_owner or "")


def claim(session: Session, job_id: str, owner: str, lease_seconds: float) -> Job | None:
    """Starts a queued job for ``owner``; nothing when somebody was quicker, it must wait, or it is over."""
    job = jobs.claim(session, job_id, owner, lease_seconds)
    if job is not None:
        events.record(session, job, f"{job.kind}.started", {"attempt": job.attempt})
    return job


def claim_next(session: Session, job_id: str, owner: str, lease_seconds: float) -> Job | None:
    """Starts the job whose turn it is in the queue of ``job_id``, whichever was announced: an urgent one does
    not wait behind all that were announced before it.
    """
    return claim(session, jobs.next_up(session, job_id) or job_id, owner, lease_seconds)


def heartbeat(session: Session, fence: Fence, lease_seconds: float) -> Beat:
    """Extends the lease. Raises ``LeaseLost`` when the job is another's: the work must stop at once."""
    cancelled = jobs.beat(session, fence.job_id, fence.attempt, fence.owner, lease_seconds)
    if cancelled is None:
        raise _lost(fence)
    return Beat(cancel_requested=cancelled)


def enter_phase(session: Session, fence: Fence, phase: str) -> None:
    """Moves to a phase and clears the progress of the last one. Phases may repeat in a later attempt."""
    if phase not in PHASES:
        raise IllegalState(f"There is no phase {phase!r}; phases are {', '.join(PHASES)}.")
    job = owned(session, fence)
    job.phase, job.progress, job.progress_at = phase, {}, None
    events.record(session, job, f"{job.kind}.phase", {"phase": phase})


def report_progress(session: Session, fence: Fence, progress: Mapping[str, Any]) -> None:
    """Stores progress of the phase; at most once a second it also becomes an event."""
    due = jobs.write_progress(
        session, fence.job_id, fence.attempt, fence.owner, progress, PROGRESS_EVENT_SECONDS
    )
    if due is None:
        raise _lost(fence)
    if due:
        job = owned(session, fence)
        events.record(session, job, f"{job.kind}.progress", {"phase": job.phase, **progress})


def succeed(session: Session, fence: Fence, result: Mapping[str, Any]) -> Job:
    """Ends the job well, also when cancelling was asked for too late."""
    job = owned(session, fence)
    job.result = dict(result)
    _end(session, job, State.SUCCEEDED, dict(result))
    return job


def fail(
    session: Session,
    fence: Fence,
    code: str,
    detail: str,
    findings: Sequence[Mapping[str, Any]] | None = None,
    retryable: bool = False,
    at_least: float = 0.0,
    counts: bool = True,
) -> Job:
    """Ends the job badly; a ``retryable`` failure with attempts left queues it again after a growing
    pause, not below ``at_least`` seconds. A job that was asked to stop is not tried again but cancelled.
    What is no fault of the job's does not count as an attempt.
    """
    job = owned(session, fence)
    job.max_attempts += not counts
    if retryable and job.state == State.CANCELLING:
        _cancelled(session, job)
    elif retryable and job.attempt < job.max_attempts:
        wait = min(BACKOFF_SECONDS * 2 ** min(job.attempt - 1, DOUBLINGS), LONGEST_BACKOFF_SECONDS)
        _requeue(session, job, code, detail, max(wait, min(at_least, LONGEST_ASKED_SECONDS)))
    else:
        _fail(session, job, code, detail, findings)
    return job


def finish_cancel(session: Session, fence: Fence) -> Job:
    """Ends a job that was asked to stop and has stopped."""
    job = owned(session, fence)
    _cancelled(session, job)
    return job


def release(session: Session, fence: Fence) -> Job:
    """Gives a job back because the worker shuts down; this attempt does not count. A cancelled job ends."""
    job = owned(session, fence)
    if job.state == State.CANCELLING:
        _cancelled(session, job)
    else:
        job.max_attempts += 1
        _requeue(session, job, "worker_stopped", "The worker was asked to stop and gave the job back.", 0.0)
    return job


def request_cancel(session: Session, job: Job) -> Job:
    """Cancels a queued job at once, asks a running one to stop, leaves an ended one as it is."""
    held = jobs.lock(session, job.id)
    if held is None:
        raise NotFound("job", job.id)
    if held.state == State.QUEUED:
        held.cancel_requested_at = now()
        _cancelled(session, held)
    elif held.state == State.RUNNING:
        _ask_to_stop(session, held)
        session.refresh(held)
    return held


def _ask_to_stop(session: Session, job: Job) -> None:
    job.cancel_requested_at = now()
    _move(job, State.CANCELLING)
    events.record(session, job, f"{job.kind}.cancelling", {})
    _dismiss(session, job)


def _dismiss(session: Session, job: Job) -> None:
    """Ends the parts of a job that is over, or is to be. Those at work when it succeeds end by themselves."""
    if job.kind not in WITH_PARTS:
        return
    for part in jobs.unfinished_children(session, job.id):
        if part.state == State.QUEUED:
            _end(session, part, State.CANCELLED, {})
        elif part.state == State.RUNNING and job.state != State.SUCCEEDED:
            _ask_to_stop(session, part)


def recover_lost(session: Session, counts: bool = True) -> list[str]:
    """Takes jobs whose lease is over: back to the queue, or ended when cancelled or out of attempts. The
    attempt ``counts`` unless the worker could not have been heard of.
    """
    jobs.date_anew(session)
    changed = []
    for job in jobs.lost(session):
        tally.note(session, "lease_lost_total")
        job.max_attempts += not counts
        if job.state == State.CANCELLING:
            _cancelled(session, job, {"worker": job.lease_owner})
        elif job.attempt < job.max_attempts:
            detail = f"The worker {job.lease_owner} was not heard of any more in phase {job.phase}."
            _requeue(session, job, WORKER_LOST, detail, 0.0)
        else:
            detail = LOST_DETAIL.format(attempts=job.attempt, phase=job.phase)
            _fail(session, job, WORKER_LOST, detail, None)
        changed.append(job.id)
    return changed


def expire(session: Session) -> list[str]:
    """Ends queued jobs that were not started by the time their caller set."""
    changed = []
    for job in jobs.outdated(session):
        job.error_code, job.error_detail = EXPIRED, "The job was not started before its expires_at."
        _end(session, job, State.EXPIRED, {})
        changed.append(job.id)
    return changed


def announce_due(session: Session, after_seconds: float) -> list[tuple[str, str, bool]]:
    """(job id, queue, whether for the first time) of ready jobs not announced within ``after_seconds``; send
    after the commit.
    """
    return jobs.announce(session, after_seconds)


def delete(session: Session, job: Job) -> None:
    """Removes an ended job with all that hangs on it; workers remove what they keep of it afterwards. Raises
    ``IllegalState`` for any other, for one whose result another job reads, and for the first of a chain of
    retries while there are others: they share its trials and its webhook.
    """
    held = jobs.lock(session, job.id)
    if held is None:
        raise NotFound("job", job.id)
    if not is_terminal(held.state):
        raise IllegalState(f"The job {held.id} is {held.state}; cancel it before deleting it.")
    if readers := removals.readers(session, held):
        raise IllegalState(
            f"The job {held.id} has made what {', '.join(readers)} reads; delete it when that is over."
        )
    retries = [each.id for each in jobs.retries(session, held.id) if each.id != held.id]
    if retries:
        raise IllegalState(
            f"The job {held.id} was tried again, and its retries share what it has found; delete "
            f"{', '.join(retries)} before it."
        )
    removals.remove(session, held)


def owned(session: Session, fence: Fence) -> Job:
    """The job, locked. Raises ``LeaseLost`` when it is another's."""
    job = jobs.lock_owned(session, fence.job_id, fence.attempt, fence.owner)
    if job is None:
        raise _lost(fence)
    return job


def _lost(fence: Fence) -> LeaseLost:
    return LeaseLost(fence.job_id, fence.attempt, fence.owner)


def _move(job: Job, state: State) -> None:
    if not may_move(job.state, state):
        raise IllegalState(f"The job {job.id} is {job.state}; it cannot become {state}.")
    job.state = state


def _end(session: Session, job: Job, state: State, data: Mapping[str, Any]) -> None:
    _move(job, state)
    job.lease_owner = job.lease_until = None
    job.finished_at = now()
    session.flush()
    session.refresh(job)
    events.record(session, job, f"{job.kind}.{state}", data)
    if job.parent_id is not None:
        return
    _dismiss(session, job)
    tally.note(session, "merge_jobs_total", job.method or "none", str(state))
    tally.note(session, "job_attempts", value=job.attempt)


def _cancelled(session: Session, job: Job, data: Mapping[str, Any] | None = None) -> None:
    """Ends a job that was to be cancelled. Whether a commit came to pass that was under way when its worker
    was stopped, or whose answer was lost, only the Hub can tell.
    """
    output = job.spec.get("output") or {}
    if output.get("repo") and output.get("publish") != "never" and has_entered(session, job.id, "finalising"):
        detail = f"the result was being committed to {output['repo']}, and may be there: look at the Hub"
        events.record(session, job, f"{job.kind}.warning", {"code": "commit_unsure", "detail": detail})
    _end(session, job, State.CANCELLED, data or {})


def _fail(
    session: Session, job: Job, code: str, detail: str, findings: Sequence[Mapping[str, Any]] | None
) -> None:
    job.error_code, job.error_detail = code, detail
    job.error_findings = None if findings is None else [dict(each) for each in findings]
    _end(session, job, State.FAILED, {"code": code, "detail": detail, "findings": job.error_findings})


def _requeue(session: Session, job: Job, code: str, detail: str, wait: float) -> None:
    _move(job, State.QUEUED)
    job.lease_owner = job.lease_until = job.announced_at = job.phase = job.progress_at = None
    job.progress = {}
    job.not_before = now() + seconds(wait) if wait else None
    session.flush()
    session.refresh(job)
    events.record(
        session, job, f"{job.kind}.requeued", {"code": code, "detail": detail, "attempt": job.attempt}
    )
