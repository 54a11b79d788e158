"""Bodies of jobs, plans and events.

What is read often is not made as a model only to be dumped again: the functions below give plain data that
``api/answers.py`` writes as JSON, and a test holds them against the models, which describe them to callers.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.common import Moment, Out
from db.jobs import JobBrief
from db.models.job import Job, JobEvent
from jobs.request import ORDERS
from jobs.states import State

ORDER_SCHEMA = "JobCreate"


class Progress(Out):
    """How far the present phase is."""

    fraction: float | None = Field(None, ge=0, le=1)
    bytes_done: int | None = None
    bytes_total: int | None = None
    tensors_done: int | None = None
    tensors_total: int | None = None
    rows_done: int | None = Field(None, description="Texts and questions scored, while evaluating")
    rows_total: int | None = None
    tokens_done: int | None = Field(None, description="Tokens through the whole model, while measuring")
    tokens_total: int | None = None
    tokens_per_second: int | None = Field(None, description="Mean of the measurement so far")
    blocks_done: int | None = Field(None, description="Blocks (layers) of the model that are measured")
    blocks_total: int | None = None
    eta_seconds: float | None = None


NO_PROGRESS: dict[str, None] = dict.fromkeys(Progress.model_fields)


class JobError(Out):
    """Why a job did not succeed."""

    code: str
    detail: str | None
    errors: list[dict[str, Any]]


class JobLinks(Out):
    """Where to go from here."""

    self: str
    cancel: str
    retry: str
    events: str
    stream: str
    artifacts: str
    evaluations: str
    inputs: str


class JobShortOut(Out):
    """A job in a list."""

    id: str
    kind: str
    state: State
    phase: str | None = Field(description="More phases may come; treat unknown ones as work in progress")
    progress: Progress
    method: str | None
    queue: Literal["cpu", "gpu"]
    priority: int
    output: dict[str, Any]
    metadata: dict[str, str]
    attempt: int
    max_attempts: int
    retry_of: str | None
    recipe_sha256: str
    error: JobError | None
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    expires_at: Moment | None
    cancel_requested_at: Moment | None
    links: JobLinks


class JobOut(JobShortOut):
    """A job in full: the recipe with every model pinned, the plan, and the result when there is one.

    A job that merges nothing has the models it works on in place of a recipe.
    """

    recipe: dict[str, Any]
    plan: dict[str, Any] | None
    evaluate: dict[str, Any]
    result: dict[str, Any] | None
    timeout_seconds: float
    hub_credential: str | None
    translation: list[str] = Field(
        default_factory=list, description="How a mergekit configuration was read; only in the plan afterwards"
    )
    queue_position: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Only with `include=queue_position`, while queued"
    )


class EventOut(Out):
    """One thing that happened to a job; ``seq`` counts from 1 without gaps."""

    seq: int
    type: str
    at: Moment
    data: dict[str, Any]


class EventsOut(Out):
    """Events in order; ask again with ``after`` set to the last ``seq``."""

    data: list[EventOut]
    has_more: bool


class InputOut(Out):
    """A model that a job reads, pinned."""

    role: str
    kind: Literal["hub", "folder"]
    repo: str
    requested_revision: str | None
    sha: str | None
    size_bytes: int
    license: str | None
    private: bool
    gated: bool


class InputsOut(Out):
    """Every model a job reads, base first."""

    data: list[InputOut]


class PlanOut(Out):
    """What would happen; nothing is recorded and no weights are read."""

    recipe: dict[str, Any] = Field(
        description="The recipe (or the `models` of a job that merges none), every model pinned to a commit"
    )
    plan: dict[str, Any]
    queue: Literal["cpu", "gpu"]
    findings: list[dict[str, Any]] = Field(description="Warnings; errors would have been refused")
    translation: list[str] = Field(description="How a mergekit configuration was read")


def job_links(job_id: str) -> dict[str, str]:
    """Paths below the service's own address."""
    here = f"/v1/jobs/{job_id}"
    return {
        "self": here,
        "cancel": f"{here}/cancel",
        "retry": f"{here}/retry",
        "events": f"{here}/events",
        "stream": f"{here}/events/stream",
        "artifacts": f"{here}/artifacts",
        "evaluations": f"{here}/evaluations",
        "inputs": f"{here}/inputs",
    }


def job_short(job: Job | JobBrief) -> dict[str, Any]:
    """A job as it stands in lists: what ``JobShortOut`` describes, as plain data."""
    output = job.spec.get("output") if isinstance(job, Job) else job.output
    error = None
    if job.error_code is not None:
        error = {"code": job.error_code, "detail": job.error_detail, "errors": job.error_findings or []}
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "phase": job.phase,
        "progress": NO_PROGRESS | (job.progress or {}),
        "method": job.method,
        "queue": job.queue,
        "priority": job.priority,
        "output": output or {},
        "metadata": job.metadata_,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "retry_of": job.retry_of,
        "recipe_sha256": job.recipe_sha256,
        "error": error,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "expires_at": job.expires_at,
        "cancel_requested_at": job.cancel_requested_at,
        "links": job_links(job.id),
    }


def job_out(job: Job, *, notes: Sequence[str] = (), queue_position: int | None = None) -> dict[str, Any]:
    """A job in full: what ``JobOut`` describes, as plain data."""
    return job_short(job) | {
        "recipe": job.recipe,
        "plan": job.plan,
        "evaluate": job.spec.get("evaluate") or {},
        "result": job.result,
        "timeout_seconds": job.timeout_seconds,
        "hub_credential": job.hub_credential_id,
        "translation": list(notes),
        "queue_position": queue_position,
    }


def event_out(event: JobEvent) -> dict[str, Any]:
    """An event: what ``EventOut`` describes, as plain data."""
    return {"seq": event.seq, "type": event.type, "at": event.at, "data": event.data}


def order_schemas() -> dict[str, Any]:
    """JSON schemas of the order for a job and all its parts, for the OpenAPI document."""
    parts: dict[str, Any] = {}
    for kind, order in ORDERS.items():
        schema = order.model_json_schema(ref_template="#/components/schemas/{model}", mode="validation")
        parts |= schema.pop("$defs", {})
        parts[_order_name(kind)] = schema | {"title": _order_name(kind)}
    mergekit = {"type": "object", "required": ["merge_method"], "title": "Mergekit configuration"}
    several = {"type": "array", "items": mergekit, "minItems": 1, "title": "Mergekit configurations"}
    parts[_order_name("merge")]["properties"]["recipe"] = {
        "description": "A recipe, or a mergekit configuration as it is, or several that use each other",
        "anyOf": [{"$ref": "#/components/schemas/Recipe"}, mergekit, several],
    }
    orders = [{"$ref": f"#/components/schemas/{_order_name(kind)}"} for kind in ORDERS]
    return {**parts, ORDER_SCHEMA: {"title": ORDER_SCHEMA, "anyOf": orders}}


def _order_name(kind: str) -> str:
    return f"{kind.capitalize()}Create"
