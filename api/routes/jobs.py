"""Jobs: submit, list, look, cancel, retry, delete."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api.answers import Answer
from api.bodies import StrictRoute
from api.deps import (
    JSON,
    Asked,
    Desk,
    Id,
    IdempotencyHeader,
    InDesk,
    Number,
    Reader,
    Writer,
    content_type_of,
    own_job,
)
from api.errors import Problem
from api.intake import (
    Order,
    again,
    job_now,
    key_of,
    order_of_point,
    order_to_append,
    placed,
    read_json,
    read_yaml,
)
from api.paging import page, start
from api.schemas.common import Instant, PageOut, problems
from api.schemas.jobs import ORDER_SCHEMA, InputOut, InputsOut, JobOut, JobShortOut, job_out, job_short
from db import jobs
from jobs import lifecycle
from jobs.append import AppendRequest
from jobs.keys import Caller
from jobs.searching import PointRequest
from jobs.states import State, is_terminal

PATH = "/v1/jobs"
MAX_WAIT_SECONDS = 60
SMALL_BODY = 16 << 10
"""Reading so few bytes of JSON takes less than the way to a thread and back."""
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")
BODY_TYPES = ("application/json", *YAML_TYPES)
_WAIT = re.compile(r"\s*wait\s*=\s*(\d{1,6})\s*")
_METADATA = re.compile(r"metadata\[(.{1,64})\]")

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute, responses=problems())


def order_body() -> dict[str, Any]:
    """OpenAPI of a body that is an order as JSON, or a recipe as YAML with the rest in the query."""
    text = {"type": "string"}
    options = {
        "repo": text,
        "private": {"type": "boolean"},
        "revision": text,
        "overwrite": {"type": "boolean"},
        "publish": {"enum": ["checked", "always", "never"]},
        "confirm_public": {"type": "boolean"},
        "webhook_url": text,
        "webhook_events": text | {"description": "Separated by commas"},
        "priority": {"type": "integer"},
        "timeout": {"type": "number"},
        "expires_in": {"type": "number"},
        "hub_credential": text,
    }
    said = "Only with a YAML body that is a recipe alone"
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{ORDER_SCHEMA}"}},
                "application/yaml": {
                    "schema": {"type": "string", "description": "Our recipe, mergekit's, or a whole order"}
                },
            },
        },
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema, "description": said}
            for name, schema in options.items()
        ],
    }


async def order_of_request(request: Request) -> tuple[Order, Any]:
    """The order in the body, and the body itself: as plain data if it is JSON."""
    raw = await request.body()
    content_type = content_type_of(request)
    if content_type not in BODY_TYPES:
        raise Problem(
            "media_type_unsupported",
            "send a recipe as application/json or application/yaml",
            headers={"Accept": ", ".join(BODY_TYPES)},
        )
    if content_type in YAML_TYPES:
        return await anyio.to_thread.run_sync(read_yaml, raw, dict(request.query_params)), raw
    if len(raw) <= SMALL_BODY:
        return read_json(raw)
    return await anyio.to_thread.run_sync(read_json, raw)


def wait_of(prefer: str | None) -> int:
    """Seconds asked for by ``Prefer: wait=N``, at most a minute; 0 when there is no such preference."""
    for each in (prefer or "").split(","):
        if asked := _WAIT.fullmatch(each.partition(";")[0]):
            return min(int(asked[1]), MAX_WAIT_SECONDS)
    return 0


Preference = Annotated[
    str | None,
    Header(description=f"`wait=N`: answer when the job has ended, or after N ≤ {MAX_WAIT_SECONDS} s"),
]


@router.post(
    "",
    status_code=202,
    response_model=JobOut,
    responses=problems(404, 409, 413, 415),
    openapi_extra=order_body(),
)
async def create_job(
    request: Request,
    desk: InDesk,
    caller: Writer,
    sent: Annotated[tuple[Order, Any], Depends(order_of_request)],
    key: IdempotencyHeader = None,
    prefer: Preference = None,
) -> Response:
    """Plans the recipe and accepts a job. What cannot work is refused here, with every reason.

    Asynchronous because it may wait: planning has threads of its own, so a slow Hub never holds up reading.
    """
    order, asked = sent
    accepted = await placed(request, desk, caller, lambda: order, asked, key)
    answer, wait = accepted.answer(), wait_of(prefer)
    if wait and not accepted.replayed and desk.feed.has_room:
        ended = await _until_ended(request, desk, caller, accepted.job_id, wait)
        answer = replace(accepted, body=ended or accepted.body).answer()
        answer.headers["Preference-Applied"] = f"wait={wait}"
    return answer


@router.get(
    "",
    response_model=PageOut[JobShortOut],
    openapi_extra={
        "parameters": [
            {
                "name": "metadata",
                "in": "query",
                "style": "deepObject",
                "explode": True,
                "description": "`metadata[team]=nlp`: jobs that have this entry",
                "schema": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 512}},
            }
        ]
    },
)
def list_jobs(
    request: Request,
    desk: InDesk,
    caller: Reader,
    asked: Asked,
    state: Annotated[list[State] | None, Query(max_length=len(State), description="May be repeated")] = None,
    method: Annotated[str | None, Query(max_length=64)] = None,
    kind: Annotated[str | None, Query(max_length=64)] = None,
    created_after: Annotated[Instant | None, Query()] = None,
) -> Response:
    """The tenant's jobs, newest first."""
    metadata = metadata_of(request.query_params)
    filters = {"state": state, "method": method, "created_after": created_after, "metadata": metadata}
    filters |= {"kind": kind} if kind is not None else {}
    with desk.read() as session:
        rows = jobs.briefs(
            session,
            caller.tenant_id,
            limit=asked.limit + 1,
            after=start(desk, asked, filters),
            state=state,
            method=method,
            kind=kind,
            metadata=metadata,
            created_after=created_after,
        )
    return page(desk, request, asked, filters, rows, job_short)


@router.get("/{job_id}", response_model=JobOut, responses=problems(404))
def get_job(
    desk: InDesk,
    caller: Reader,
    job_id: Id,
    include: Annotated[Literal["queue_position"] | None, Query()] = None,
) -> Response:
    """One job in full."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        position = jobs.queue_position(session, job) if include else None
    return Answer(job_out(job, queue_position=position))


@router.get("/{job_id}/inputs", responses=problems(404))
def list_inputs(desk: InDesk, caller: Reader, job_id: Id) -> InputsOut:
    """The models that the job reads, each with the commit it was pinned to."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        return InputsOut(data=[InputOut.model_validate(row) for row in jobs.inputs(session, job.id)])


@router.post(
    "/{job_id}/cancel",
    response_model=JobOut,
    responses={202: {"model": JobOut, "description": "A worker was asked to stop"}, **problems(404)},
)
def cancel_job(desk: InDesk, caller: Writer, job_id: Id) -> Response:
    """Cancels a job: 202 while a worker still has to stop, 200 when the job has ended (before or by this)."""
    with desk.begin() as session:
        job = own_job(session, caller, job_id)
        job = lifecycle.request_cancel(session, job)
        return Answer(job_out(job), 200 if is_terminal(job.state) else 202)


@router.post("/{job_id}/retry", status_code=202, response_model=JobOut, responses=problems(404, 409))
def retry_job(
    request: Request, desk: InDesk, caller: Writer, job_id: Id, key: IdempotencyHeader = None
) -> Response:
    """A new job with the order and the pinned inputs of one that failed, was cancelled or expired."""
    return again(desk, caller, job_id, key_of(request, key, b"")).answer()


@router.post(
    "/{job_id}/append",
    status_code=202,
    response_model=JobOut,
    responses=problems(404, 409, 413, 415),
    dependencies=[JSON],
)
async def append_job(
    request: Request,
    desk: InDesk,
    caller: Writer,
    job_id: Id,
    body: AppendRequest,
    key: IdempotencyHeader = None,
) -> Response:
    """A merge job in which one more model joins the result of an earlier one; of that one's models none is
    read again. Only for results of methods that go on from their own (`opcm`).
    """
    accepted = await placed(
        request, desk, caller, lambda: order_to_append(desk, caller, job_id, body), body.spec(), key
    )
    return accepted.answer()


@router.post(
    "/{job_id}/trials/{number}/merge",
    status_code=202,
    response_model=JobOut,
    responses=problems(404, 409, 413, 415),
    dependencies=[JSON],
)
async def merge_trial(
    request: Request,
    desk: InDesk,
    caller: Writer,
    job_id: Id,
    number: Number,
    body: PointRequest,
    key: IdempotencyHeader = None,
) -> Response:
    """A merge job for one candidate of a search, every model pinned as the search had it."""
    asked = body.model_dump(mode="json")
    accepted = await placed(
        request, desk, caller, lambda: order_of_point(desk, caller, job_id, number, body), asked, key
    )
    return accepted.answer()


@router.delete("/{job_id}", status_code=204, responses=problems(404, 409))
def delete_job(desk: InDesk, caller: Writer, job_id: Id) -> None:
    """Removes an ended job with everything recorded about it, and the result that the service keeps; what it
    pushed stays where it is. A job that was retried goes after its retries, which share its trials and its
    webhook; one whose result another job reads, after that has ended.
    """
    with desk.begin() as session:
        job = own_job(session, caller, job_id)
        lifecycle.delete(session, job)


def metadata_of(query: Mapping[str, str]) -> dict[str, str]:
    """The ``metadata[key]=value`` filters; an unknown parameter is refused, lest a slip list too much."""
    metadata = {}
    for name, value in query.items():
        if name in ("limit", "cursor", "state", "method", "kind", "created_after"):
            continue
        key = _METADATA.fullmatch(name)
        if key is None:
            error = {
                "in": "query",
                "pointer": f"/{name}",
                "code": "extra_forbidden",
                "detail": "unknown filter",
            }
            raise Problem("validation_failed", f"there is no filter {name!r}", errors=[error])
        metadata[key[1]] = value
    return metadata


async def _until_ended(
    request: Request, desk: Desk, caller: Caller, job_id: str, seconds: float
) -> dict[str, Any] | None:
    """The job when it has ended, or as it is after ``seconds``; nothing if it is gone."""
    end = anyio.current_time() + seconds
    async with desk.feed.waiting(job_id) as waiter:
        while True:
            job = await anyio.to_thread.run_sync(job_now, desk, caller, job_id)
            left = end - anyio.current_time()
            if job is None or is_terminal(job["state"]) or left <= 0 or desk.feed.closed.is_set():
                return job
            await waiter.wait(min(left, desk.poll_seconds))
            if await request.is_disconnected():
                return job
