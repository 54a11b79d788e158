"""Check, record, announce: how a job comes to be. The caller commits; the dispatcher hears of it then."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from db import artifacts, jobs, tokens
from db.clock import now, seconds
from db.models.base import new_id
from db.models.job import Job, JobInput
from jobs import credentials, events, webhooks
from jobs.asking import Ready
from jobs.errors import ConfirmationNeeded, IllegalState, NotFound, QuotaExceeded, RequestInvalid, within
from jobs.keyring import Keyring
from jobs.keys import Caller
from jobs.pinned import PinnedInput
from jobs.places import find_inside
from jobs.planning import Planned
from jobs.request import JobOrder, JobRequest, ModelOrder, WebhookRequest, stored_order
from jobs.states import RETRYABLE, is_terminal
from merge.catalog import catalogue
from merge.recipe.recipe import Recipe, recipe_digest


@dataclass(frozen=True)
class Rules:
    """What the operator allows. A tenant's own ``max_queued_jobs`` wins over this one."""

    keyring: Keyring
    max_queued_jobs: int
    max_attempts: int
    timeout_seconds: float
    model_roots: Sequence[Path] = ()
    allow_http: bool = False


def submit(session: Session, caller: Caller, request: JobOrder, planned: Ready | None, rules: Rules) -> Job:
    """A queued job with its inputs, its webhook and its first event. Without ``planned`` the worker plans
    it first.

    Raises ``QuotaExceeded``, ``ConfirmationNeeded``, ``NotFound`` (credential, dataset), ``RequestInvalid``.
    """
    _check_quota(session, caller, rules)
    check(session, caller, request, planned, rules)
    method, subject, digest = _subject(request, planned)
    job_id = new_id("job")
    facts: dict[str, Any] = {
        "id": job_id,
        "root_id": job_id,
        "tenant_id": caller.tenant_id,
        "kind": request.kind,
        "phase": None if planned else "resolving",
        "method": method,
        "spec": request.spec(),
        "recipe": subject,
        "recipe_sha256": digest,
        "plan": planned.summary if planned else None,
        "queue": planned.queue if planned else "cpu",
        "priority": request.priority,
        "max_attempts": rules.max_attempts,
        "timeout_seconds": min(request.timeout or rules.timeout_seconds, rules.timeout_seconds),
        "metadata_": dict(request.metadata),
        "hub_credential_id": request.hub_credential,
    }
    if request.expires_in is not None:
        facts["expires_at"] = now() + seconds(request.expires_in)
    job = jobs.add(session, facts, [each.row() for each in planned.inputs] if planned else ())
    _add_webhook(session, job, request, rules)
    events.record(session, job, f"{job.kind}.queued", {"planned": planned is not None})
    return job


def check(session: Session, caller: Caller, request: JobOrder, planned: Ready | None, rules: Rules) -> None:
    """All that ``submit`` refuses an order for besides its models and the quota; records nothing."""
    _check_parts(session, caller, request, rules)
    if planned is not None and isinstance(request, ModelOrder):
        check_publishing(request, planned.inputs)


def retry(session: Session, caller: Caller, job: Job, rules: Rules) -> Job:
    """A new job with the same order and the same pinned inputs. Raises ``IllegalState`` unless the old one
    ended badly and is not being tried again already, ``NotFound`` where it was deleted meanwhile,
    ``OrderOutdated`` where a worker would not take it any more.
    """
    _hold_chain(session, job)
    if job.state not in RETRYABLE:
        raise IllegalState(
            f"The job {job.id} is {job.state}; only a failed, cancelled or expired job can be retried."
        )
    stored_order(job.spec)
    _check_quota(session, caller, rules)
    facts: dict[str, Any] = {
        "id": new_id("job"),
        "retry_of": job.id,
        "phase": None if job.plan else "resolving",
        "max_attempts": rules.max_attempts,
        **{name: getattr(job, name) for name in SAME_AGAIN},
    }
    expires_in = job.spec.get("expires_in")
    if expires_in is not None:
        facts["expires_at"] = now() + seconds(expires_in)
    rows = [{name: getattr(row, name) for name in INPUT_COLUMNS} for row in jobs.inputs(session, job.id)]
    again = jobs.add(session, facts, rows)
    events.record(
        session, again, f"{again.kind}.queued", {"planned": again.plan is not None, "retry_of": job.id}
    )
    return again


def _hold_chain(session: Session, job: Job) -> None:
    """Holds a job and the first of its chain. Jobs of a chain share their work folder and their trials, and
    the second to run would only fail for that, so they go one at a time.
    """
    if jobs.lock(session, job.root_id) is None or jobs.lock(session, job.id) is None:
        raise NotFound("job", job.id)
    for each in jobs.retries(session, job.root_id):
        if each.id != job.id and not is_terminal(each.state):
            raise IllegalState(
                f"The job {job.id} is tried again already, as {each.id}, which is {each.state}; wait until "
                "that has ended, or cancel it."
            )


SUBMITS_AT_ONCE = 64
"""More than can be between their look at the queue and their commit; see ``_check_quota``."""

SAME_AGAIN = (
    "root_id", "tenant_id", "kind", "method", "spec", "recipe", "recipe_sha256", "plan", "queue", "priority",
    "timeout_seconds", "metadata_", "hub_credential_id",
)  # fmt: skip
"""What a retry takes over."""
INPUT_COLUMNS = tuple(name for name in JobInput.__mapper__.columns.keys() if name != "job_id")  # noqa: SIM118


def check_publishing(request: ModelOrder, inputs: Iterable[PinnedInput]) -> None:
    """Raises ``ConfirmationNeeded`` for a public output from gated or private inputs without the caller's
    word.
    """
    output = request.output
    if output.repo is None or output.private or output.confirm_public or output.publish == "never":
        return
    restricted = sorted({each.name for each in inputs if each.is_restricted})
    if restricted:
        raise ConfirmationNeeded(
            f"{output.repo} would be public, but {', '.join(restricted)} need permission to be read; set "
            "output.private, or output.confirm_public if their terms allow it.",
            "/output/private",
        )


def main_method(recipe: Recipe) -> str:
    """The method that combines the models, by which jobs are listed; the first step's where none is known."""
    known = catalogue()
    for step in recipe.steps:
        entry = known.get(step.method)
        if entry is not None and entry.kind == "combine":
            return step.method
    return recipe.steps[0].method


def _subject(request: JobOrder, planned: Ready | None) -> tuple[str | None, dict[str, Any], str]:
    """The method by which the job is listed, what it works on, and the digest of that."""
    subject = planned.subject if planned else request.subject
    if isinstance(request, JobRequest):
        recipe = planned.recipe if isinstance(planned, Planned) else request.recipe
        return main_method(recipe), subject, recipe_digest(recipe)
    return None, subject, hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()


def _check_quota(session: Session, caller: Caller, rules: Rules) -> None:
    """Far from the limit one look is enough; near it the tenant's submits go one at a time."""
    own, queued = _quota(session, caller)
    limit = rules.max_queued_jobs if own is None else own
    if queued + SUBMITS_AT_ONCE < limit:
        return
    tokens.lock_tenant(session, caller.tenant_id)
    if _quota(session, caller)[1] >= limit:
        raise QuotaExceeded(limit)


def _quota(session: Session, caller: Caller) -> tuple[int | None, int]:
    found = jobs.quota(session, caller.tenant_id)
    if found is None:
        raise NotFound("tenant", caller.tenant_id)
    return found


def _check_parts(session: Session, caller: Caller, request: JobOrder, rules: Rules) -> None:
    if request.hub_credential is not None:
        credentials.find_credential(session, caller.tenant_id, request.hub_credential)
    for position, each in enumerate(request.evaluation_sets):
        pointer = f"/evaluate/sets/{position}/data"
        if each.data is None:
            continue
        if each.data.dataset is not None:
            found = artifacts.use_dataset(session, caller.tenant_id, each.data.dataset)
            if found is None:
                raise RequestInvalid(
                    f"There is no dataset {each.data.dataset!r}; upload it first.", f"{pointer}/dataset"
                )
        if each.data.path is not None:
            with within(f"{pointer}/path"):
                find_inside(each.data.path, rules.model_roots, folder=False)
    if (wanted := request.webhook) is not None:
        with within("/webhook"):
            webhooks.check_endpoint(
                wanted.url, wanted.events, _secret_of(wanted), allow_http=rules.allow_http
            )


def _add_webhook(session: Session, job: Job, request: JobOrder, rules: Rules) -> None:
    wanted = request.webhook
    if wanted is None:
        return
    webhooks.create_endpoint(
        session,
        rules.keyring,
        job.tenant_id,
        wanted.url,
        wanted.events,
        description=f"for {job.id}",
        secret=_secret_of(wanted),
        job_id=job.id,
        allow_http=rules.allow_http,
    )


def _secret_of(wanted: WebhookRequest) -> str | None:
    return wanted.secret.get_secret_value() if wanted.secret else None
