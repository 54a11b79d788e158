"""Queries on jobs and their inputs. Rules are in ``jobs/lifecycle.py``; nothing here decides."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypedDict, Unpack, cast

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, func, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session, defer

from db.clock import now, seconds
from db.models.base import Json
from db.models.job import Job, JobInput
from db.models.tenant import Tenant

ACTIVE = ("running", "cancelling")
SWEEP = 500
INPUT_DEFAULTS: Json = {"size_bytes": 0, "private": False, "gated": False, "params": {}}

# Any number of rows is one statement with one parameter: nothing is compiled anew for another number.
_PUT_INPUTS = text(
    "INSERT INTO job_input SELECT * FROM jsonb_populate_recordset(CAST(NULL AS job_input), :rows)"
).bindparams(bindparam("rows", type_=JSONB))


def add(session: Session, facts: Mapping[str, Any], inputs: Iterable[Mapping[str, Any]]) -> Job:
    """A new job of these columns with its inputs, as the database made it."""
    made = insert(Job).values(dict(facts)).returning(Job)
    job = session.scalars(made).one()
    _add_inputs(session, job.id, inputs)
    return job


def get(session: Session, job_id: str) -> Job | None:
    """The job as it is now, whoever owns it."""
    return session.get(Job, job_id, populate_existing=True)


def of_tenant(session: Session, tenant_id: str, job_id: str) -> Job | None:
    """The job if it belongs to this tenant, and is no part of another."""
    found = select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id, _whole())
    return session.scalars(found, execution_options={"populate_existing": True}).one_or_none()


def standing(session: Session, tenant_id: str, job_id: str) -> tuple[str, int] | None:
    """State and last event number of a job, if it belongs to this tenant: all that following it needs."""
    rows = select(Job.state, Job.event_seq).where(Job.id == job_id, Job.tenant_id == tenant_id, _whole())
    found = session.execute(rows).one_or_none()
    return None if found is None else (found[0], found[1])


def lock(session: Session, job_id: str) -> Job | None:
    """The job, held until the transaction ends; rows that refer to it may still be made and changed."""
    found = select(Job).where(Job.id == job_id).with_for_update(key_share=True)
    return session.scalars(found, execution_options={"populate_existing": True}).one_or_none()


def lock_owned(session: Session, job_id: str, attempt: int, owner: str) -> Job | None:
    """The job, held, if this attempt of this owner still has it."""
    found = select(Job).where(Job.id == job_id, *_owned(attempt, owner)).with_for_update()
    return session.scalars(found, execution_options={"populate_existing": True}).one_or_none()


class Filters(TypedDict, total=False):
    """Which jobs of a tenant. ``after`` is (created_at, id) of the last row of the page before."""

    after: tuple[datetime, str] | None
    state: str | Sequence[str] | None
    method: str | None
    kind: str | None
    metadata: Mapping[str, str] | None
    created_after: datetime | None


class JobBrief(Protocol):
    """What lists show of a job: everything small."""

    id: str
    kind: str
    state: str
    phase: str | None
    progress: Json
    method: str | None
    queue: str
    priority: int
    output: Json | None
    metadata_: Json
    attempt: int
    max_attempts: int
    retry_of: str | None
    recipe_sha256: str
    error_code: str | None
    error_detail: str | None
    error_findings: list[Json] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    cancel_requested_at: datetime | None


_BRIEF = tuple(
    Job.spec["output"].label("output") if name == "output" else getattr(Job, name).label(name)
    for name in JobBrief.__annotations__
)


def page(session: Session, tenant_id: str, *, limit: int, **filters: Unpack[Filters]) -> Sequence[Job]:
    """Newest first. Ask for one more than you show to know of more. The plan is left out."""
    rows = select(Job).options(defer(Job.plan, raiseload=True))
    return session.scalars(_filtered(rows, tenant_id, limit, **filters)).all()


def briefs(session: Session, tenant_id: str, *, limit: int, **filters: Unpack[Filters]) -> Sequence[JobBrief]:
    """As ``page``, with what lists show only: neither recipe, order nor plan leaves the database."""
    rows = _filtered(select(*_BRIEF), tenant_id, limit, **filters)
    return cast("Sequence[JobBrief]", session.execute(rows).all())


def _filtered(
    rows: Select[Any],
    tenant_id: str,
    limit: int,
    *,
    after: tuple[datetime, str] | None = None,
    state: str | Sequence[str] | None = None,
    method: str | None = None,
    kind: str | None = None,
    metadata: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
) -> Select[Any]:
    rows = rows.where(Job.tenant_id == tenant_id, _whole())
    if after is not None:
        rows = rows.where(tuple_(Job.created_at, Job.id) < after)
    if state is not None:
        rows = rows.where(Job.state.in_([state] if isinstance(state, str) else state))
    if method is not None:
        rows = rows.where(Job.method == method)
    if kind is not None:
        rows = rows.where(Job.kind == kind)
    if metadata:
        rows = rows.where(Job.metadata_.contains(dict(metadata)))
    if created_after is not None:
        rows = rows.where(Job.created_at > created_after)
    return rows.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)


def count_states(session: Session, tenant_id: str | None = None) -> dict[tuple[str, str], int]:
    """How many jobs there are for each (queue, state); of all tenants, parts of jobs counted, without
    ``tenant_id``.
    """
    rows = select(Job.queue, Job.state, func.count()).group_by(Job.queue, Job.state)
    if tenant_id is not None:
        rows = rows.where(Job.tenant_id == tenant_id, _whole())
    return {(queue, state): count for queue, state, count in session.execute(rows)}


def quota(session: Session, tenant_id: str) -> tuple[int | None, int] | None:
    """The tenant's own limit of queued jobs, and how many it has; nothing if there is no such tenant."""
    queued = select(func.count()).where(Job.tenant_id == tenant_id, Job.state == "queued", _whole())
    rows = select(Tenant.max_queued_jobs, queued.scalar_subquery()).where(Tenant.id == tenant_id)
    found = session.execute(rows).one_or_none()
    return None if found is None else (found[0], found[1])


def oldest_queued_seconds(session: Session) -> dict[str, float]:
    """For each queue, how long its oldest ready job has waited."""
    age = func.extract("epoch", now() - func.min(Job.created_at))
    rows = select(Job.queue, age).where(Job.state == "queued", _ready()).group_by(Job.queue)
    return {queue: float(waited) for queue, waited in session.execute(rows)}


def longest_silence_seconds(session: Session) -> dict[str, float]:
    """For each queue, how long the quietest worker of a running job has not been heard of."""
    silence = func.extract("epoch", now() - func.min(Job.heartbeat_at))
    rows = select(Job.queue, silence).where(Job.state.in_(ACTIVE)).group_by(Job.queue)
    return {queue: float(seconds) for queue, seconds in session.execute(rows) if seconds is not None}


def queue_position(session: Session, job: Job) -> int | None:
    """1 for the job that is next on its queue, nothing for a job that does not wait."""
    if job.state != "queued":
        return None
    ahead = or_(
        Job.priority > job.priority,
        and_(Job.priority == job.priority, tuple_(Job.created_at, Job.id) < (job.created_at, job.id)),
    )
    rows = select(func.count()).where(Job.state == "queued", Job.queue == job.queue, ahead)
    return (session.scalar(rows) or 0) + 1


def unattended_seconds(session: Session, job: Job) -> float | None:
    """How long a ready job has waited while no worker has any job of its queue in hand; else nothing."""
    busy = select(Job.id).where(Job.queue == job.queue, Job.state.in_(ACTIVE)).exists()
    waited = func.extract("epoch", now() - func.greatest(Job.created_at, Job.not_before, Job.heartbeat_at))
    rows = select(waited).where(Job.id == job.id, Job.state == "queued", _ready(), ~busy)
    found = session.scalar(rows)
    return None if found is None else float(found)


def next_up(session: Session, job_id: str) -> str | None:
    """Of the queue of this job the ready one whose turn it is, held; those that others hold are theirs."""
    queue = select(Job.queue).where(Job.id == job_id).scalar_subquery()
    rows = select(Job.id).where(Job.queue == queue, Job.state == "queued", _ready(), _unexpired())
    rows = rows.order_by(Job.priority.desc(), Job.created_at, Job.id).limit(1)
    return session.scalar(rows.with_for_update(key_share=True, skip_locked=True))


def claim(session: Session, job_id: str, owner: str, lease_seconds: float) -> Job | None:
    """Gives a queued, ready job to ``owner``; nothing if somebody was quicker or it is not to run."""
    taken = (
        update(Job)
        .where(Job.id == job_id, Job.state == "queued", _ready(), _unexpired())
        .values(
            state="running",
            phase="resolving",
            progress={},
            attempt=Job.attempt + 1,
            lease_owner=owner,
            lease_until=now() + seconds(lease_seconds),
            heartbeat_at=now(),
            started_at=func.coalesce(Job.started_at, now()),
        )
        .returning(Job)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    return session.scalars(taken).one_or_none()


def beat(session: Session, job_id: str, attempt: int, owner: str, lease_seconds: float) -> bool | None:
    """Extends the lease; whether cancelling was asked for, or nothing when the fence is stale."""
    return session.scalar(
        update(Job)
        .where(Job.id == job_id, *_owned(attempt, owner))
        .values(lease_until=now() + seconds(lease_seconds), heartbeat_at=now())
        .returning(Job.cancel_requested_at.is_not(None))
        .execution_options(synchronize_session=False)
    )


def write_progress(
    session: Session, job_id: str, attempt: int, owner: str, progress: Mapping[str, Any], event_every: float
) -> bool | None:
    """Stores progress; whether an event is due, or nothing when the fence is stale."""
    due = or_(Job.progress_at.is_(None), Job.progress_at < now() - seconds(event_every))
    locked = (
        select(Job.id, due.label("due")).where(Job.id == job_id, *_owned(attempt, owner)).with_for_update()
    )
    found = session.execute(locked).one_or_none()
    if found is None:
        return None
    values: dict[str, Any] = {"progress": dict(progress)}
    if found.due:
        values["progress_at"] = now()
    session.execute(
        update(Job).where(Job.id == job_id).values(values).execution_options(synchronize_session=False)
    )
    return bool(found.due)


def lost(session: Session) -> Sequence[Job]:
    """Jobs whose lease is over, held; those that another process holds are left to it."""
    rows = select(Job).where(Job.state.in_(ACTIVE), Job.lease_until < now())
    return session.scalars(rows.limit(SWEEP).with_for_update(skip_locked=True)).all()


def date_anew(session: Session) -> None:
    """Has leases that were given in what is the future now that the database's clock was set back count from
    now on: whoever is at work renews them, and of the others one hears no later than ever.
    """
    session.execute(
        update(Job)
        .where(Job.state.in_(ACTIVE), Job.heartbeat_at > now())
        .values(heartbeat_at=now(), lease_until=now() + (Job.lease_until - Job.heartbeat_at))
        .execution_options(synchronize_session=False)
    )


def outdated(session: Session) -> Sequence[Job]:
    """Queued jobs past their ``expires_at`` that were never started, held."""
    rows = select(Job).where(Job.state == "queued", Job.started_at.is_(None), Job.expires_at <= now())
    return session.scalars(rows.limit(SWEEP).with_for_update(skip_locked=True)).all()


def announce(session: Session, after_seconds: float) -> list[tuple[str, str, bool]]:
    """(id, queue, whether for the first time) of ready jobs not announced within ``after_seconds``, marked as
    announced now.
    """
    quiet = or_(Job.announced_at.is_(None), Job.announced_at < now() - seconds(after_seconds))
    due = (
        select(Job.id, Job.queue, Job.announced_at.is_(None))
        .where(Job.state == "queued", _ready(), _unexpired(), quiet)
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(SWEEP)
        .with_for_update(skip_locked=True)
    )
    found = [(job_id, queue, first) for job_id, queue, first in session.execute(due)]
    if not found:
        return []
    session.execute(
        update(Job)
        .where(Job.id.in_([job_id for job_id, _, _ in found]))
        .values(announced_at=now())
        .execution_options(synchronize_session=False)
    )
    return found


def put_inputs(session: Session, job_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the inputs of a job."""
    session.execute(delete(JobInput).where(JobInput.job_id == job_id))
    _add_inputs(session, job_id, rows)


def _add_inputs(session: Session, job_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    values = [INPUT_DEFAULTS | {"job_id": job_id} | dict(row) for row in rows]
    if values:
        session.execute(_PUT_INPUTS, {"rows": values})


def inputs(session: Session, job_id: str) -> Sequence[JobInput]:
    """The pinned inputs of a job, base first."""
    rows = select(JobInput).where(JobInput.job_id == job_id)
    return session.scalars(rows.order_by(JobInput.role != "base", JobInput.role)).all()


def retries(session: Session, root_id: str) -> Sequence[Job]:
    """Every job of a chain of retries, oldest first."""
    return session.scalars(select(Job).where(Job.root_id == root_id).order_by(Job.created_at, Job.id)).all()


def ended_chains(session: Session, root_ids: Collection[str]) -> set[str]:
    """Those of these first jobs of chains of retries of which no job waits or runs."""
    goes_on = func.bool_or(Job.state.in_(("queued", *ACTIVE)))
    rows = select(Job.root_id).where(Job.root_id.in_(root_ids)).group_by(Job.root_id).having(~goes_on)
    return set(session.scalars(rows))


def children(session: Session, job_id: str) -> Sequence[Job]:
    """The jobs that are parts of another, oldest first."""
    rows = select(Job).where(Job.parent_id == job_id).order_by(Job.created_at, Job.id)
    return session.scalars(rows, execution_options={"populate_existing": True}).all()


def unfinished_children(session: Session, job_id: str) -> Sequence[Job]:
    """Those that wait or run, held."""
    rows = select(Job).where(Job.parent_id == job_id, Job.state.in_(("queued", *ACTIVE)))
    rows = rows.order_by(Job.created_at, Job.id).with_for_update()
    return session.scalars(rows, execution_options={"populate_existing": True}).all()


def moment(session: Session, job_id: str) -> tuple[str, str | None] | None:
    """State and phase of a job; nothing if it is gone."""
    found = session.execute(select(Job.state, Job.phase).where(Job.id == job_id)).one_or_none()
    return None if found is None else (found[0], found[1])


def _owned(attempt: int, owner: str) -> tuple[ColumnElement[bool], ...]:
    return Job.attempt == attempt, Job.lease_owner == owner, Job.state.in_(ACTIVE)


def _whole() -> ColumnElement[bool]:
    return Job.parent_id.is_(None)


def _ready() -> ColumnElement[bool]:
    return or_(Job.not_before.is_(None), Job.not_before <= now())


def _unexpired() -> ColumnElement[bool]:
    """A job that was started in time goes on whenever its worker is lost."""
    return or_(Job.expires_at.is_(None), Job.expires_at > now(), Job.started_at.is_not(None))
