"""How a job that does not succeed ends: any failure becomes a stable code and a sentence."""

import errno
import sys
from dataclasses import dataclass, replace
from typing import Any

from db.session import Session, has_hung_up
from hub.errors import HubError, RateLimited
from jobs import lifecycle
from jobs.errors import JobError
from jobs.lifecycle import Fence
from merge.errors import FindingsError, MergeError
from scoring.errors import ScoringError
from search.errors import SearchError
from worker.errors import (
    DatabaseAway,
    DiskFull,
    DiskUnusable,
    OutOfMemory,
    Stop,
    TimedOut,
    Unexpected,
    WorkerError,
)
from worker.log import redacted

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Failure:
    """What is recorded of a failed job, for how many seconds at least it is not tried again, and whether the
    attempt counts.
    """

    code: str
    detail: str
    findings: list[dict[str, Any]] | None = None
    retryable: bool = False
    wait: float = 0.0
    counts: bool = True


def describe(error: BaseException, *, secret: str | None = None) -> Failure:
    """The failure that ``error`` stands for; ``secret`` never appears in its sentence or findings."""
    failure = _classify(error)
    return replace(
        failure, detail=redacted(failure.detail, secret), findings=redacted(failure.findings, secret)
    )


def _classify(error: BaseException) -> Failure:
    if isinstance(error, FindingsError):
        return Failure(error.code, str(error), [finding.as_dict() for finding in error.findings])
    if isinstance(error, RateLimited):
        return Failure(error.code, str(error), retryable=True, wait=error.seconds or 0.0)
    if has_hung_up(error):
        error = DatabaseAway("the database of the service went away; the job goes on when it is back")
    if isinstance(error, WorkerError):
        return Failure(error.code, str(error), retryable=error.retryable, counts=error.counts)
    if isinstance(error, HubError):
        return Failure(error.code, str(error), retryable=error.retryable)
    if isinstance(error, MergeError | ScoringError | SearchError | JobError):
        return Failure(error.code, str(error))
    if is_out_of_memory(error):
        detail = (
            "memory ran out; lower MERGERY_MEMORY_BUDGET_BYTES or give the worker more memory, then retry"
        )
        return Failure(OutOfMemory.code, detail)
    if isinstance(error, OSError) and error.errno in FULL:
        return Failure(DiskFull.code, "the work disk is full; free some space, then retry the job")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        detail = f"the disk with {error.filename} is read-only; the worker's operator is to look after it"
        return Failure(DiskUnusable.code, detail, retryable=True)
    detail = f"an unexpected {type(error).__name__} stopped the job; the worker's log has the details"
    return Failure(Unexpected.code, detail, retryable=True)


def settle_stop(session: Session, fence: Fence, reason: Stop) -> str | None:
    """Records what a stopped job becomes: cancelled, failed or queued again; nothing if another owns it."""
    if reason is Stop.CANCEL:
        return lifecycle.finish_cancel(session, fence).state
    if reason is Stop.TIMEOUT:
        detail = "the job took longer than its time limit; order it again with a longer timeout"
        return lifecycle.fail(session, fence, TimedOut.code, detail).state
    if reason is Stop.SHUTDOWN:
        return lifecycle.release(session, fence).state
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that memory, of the host or of the GPU, ran out."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
