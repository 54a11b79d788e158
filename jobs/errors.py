"""Everything that the rules of a job can refuse, as one tree.

JobError
├── NotFound               no such row for this tenant
├── IllegalState           the job's state does not allow it
├── LeaseLost              the writer no longer owns the job (a worker must stop at once)
├── QuotaExceeded          too many queued jobs
├── Conflict               the row is in use, or exists already
├── RequestInvalid         a field of the request is wrong
│   ├── ModelNameInvalid   a model is neither a Hub repository nor inside an allowed folder
│   ├── EndpointUrlInvalid a webhook URL that may never be called
│   └── ConfirmationNeeded a public output from gated or private inputs
├── OrderOutdated          an earlier version took the order, this one does not
├── PlanTimeout            planning took longer than allowed (the worker plans instead)
├── Unauthenticated        no valid API key
├── ScopeMissing           the key may not do this
├── CredentialUnreadable   a stored secret cannot be decrypted with the present keys
├── IdempotencyMismatch    the key was used with another request
└── IdempotencyInProgress  the first request with the key has not ended
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class JobError(Exception):
    """Base of all refusals of this room. ``str(error)`` says what is wrong and what to do."""

    code: ClassVar[str] = "job_error"


class NotFound(JobError):
    """There is no such thing for this tenant; says the same when it belongs to another."""

    code = "not_found"

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"There is no {what} {name!r}.")


class IllegalState(JobError):
    """The state of the row does not allow what was asked."""

    code = "illegal_state"


class LeaseLost(JobError):
    """The writer's fence is stale: another worker has the job, or it has ended. Nothing was written."""

    code = "lease_lost"

    def __init__(self, job_id: str, attempt: int, owner: str) -> None:
        super().__init__(f"Attempt {attempt} of {job_id} no longer belongs to {owner}; stop the work.")


class QuotaExceeded(JobError):
    """The tenant has as many queued jobs as it may."""

    code = "quota_exceeded"
    retry_after = 30.0

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} jobs are queued already, which is the limit; wait for one to start or cancel one."
        )


class Conflict(JobError):
    """The row is in use, or one of that name exists."""

    code = "conflict"


class RequestInvalid(JobError):
    """A field of the request is wrong. ``pointer`` is its JSON pointer in the body."""

    code = "request_invalid"

    def __init__(self, message: str, pointer: str = "") -> None:
        self.pointer = pointer
        super().__init__(message)


@contextmanager
def within(pointer: str) -> Iterator[None]:
    """What is wrong with a part of an order is told at its place in the whole."""
    try:
        yield
    except RequestInvalid as error:
        error.pointer = pointer + error.pointer
        raise


class ModelNameInvalid(RequestInvalid):
    """A model's name is neither a Hub repository nor a folder inside the allowed roots."""

    code = "model_name_invalid"


class EndpointUrlInvalid(RequestInvalid):
    """A webhook URL that may never be called."""

    code = "endpoint_url_invalid"


class ConfirmationNeeded(RequestInvalid):
    """The output would be public although an input is gated or private."""

    code = "confirmation_needed"


class OrderOutdated(JobError):
    """An earlier version of the service took the job's order, and this one does not."""

    code = "order_outdated"

    def __init__(self, what: str) -> None:
        super().__init__(f"An earlier version took this order; this one refuses it ({what}). Order it anew.")


class PlanTimeout(JobError):
    """Planning took longer than the caller would wait; a worker can plan the job instead."""

    code = "plan_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The models could not be looked at within {seconds:g} s; submit the job and follow it."
        )


class Unauthenticated(JobError):
    """No API key, an unknown one, a revoked one or an expired one."""

    code = "unauthenticated"


class ScopeMissing(JobError):
    """The key is valid but lacks a scope."""

    code = "scope_missing"

    def __init__(self, scope: str, held: Iterable[str]) -> None:
        super().__init__(f"This needs the scope {scope}; the key has {', '.join(sorted(held)) or 'none'}.")


class CredentialUnreadable(JobError):
    """A stored secret was sealed with a key that is not configured any more, or was altered."""

    code = "credential_unreadable"


class IdempotencyMismatch(JobError):
    """The idempotency key was used with another method, path or body."""

    code = "idempotency_mismatch"

    def __init__(self, key: str) -> None:
        super().__init__(f"The Idempotency-Key {key!r} was used with another request; choose a new one.")


class IdempotencyInProgress(JobError):
    """The first request with the idempotency key is still being answered."""

    code = "idempotency_in_progress"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The first request with the Idempotency-Key {key!r} is still running; try again shortly."
        )
