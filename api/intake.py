"""From what a caller sent to a planned, recorded job."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from api.answers import Answer
from api.bodies import check_tree, load_json
from api.deps import Desk, found, own_job
from api.errors import Problem, from_room, from_validation, location_in
from api.schemas.jobs import job_out
from db import jobs, trials
from db.session import Session
from hub.errors import HubError
from jobs import credentials, idempotency, submit
from jobs.append import AppendRequest, append_order
from jobs.asking import Asking, Ready
from jobs.errors import PlanTimeout
from jobs.idempotency import Replay, Reservation
from jobs.keys import Caller
from jobs.kinds import plan_order
from jobs.request import JobOrder, read_order
from jobs.scratch import room
from jobs.searching import PointRequest, point_order
from merge.errors import FindingsError, MergeError
from merge.mergekit.translate import Translation, read_documents
from merge.recipe.document import load_documents

RECIPE = "/recipe"
OUTPUT_OPTIONS = ("repo", "private", "revision", "overwrite", "publish", "confirm_public")
WEBHOOK_OPTIONS = {"webhook_url": "url", "webhook_events": "events"}
OTHER_OPTIONS = ("priority", "timeout", "expires_in", "hub_credential")

Found = TypeVar("Found")


@dataclass(frozen=True)
class Order:
    """A request checked for form. ``notes`` say how a mergekit configuration was read; ``prefix`` is where
    the recipe lies in what the caller sent, so that findings point there.
    """

    request: JobOrder
    notes: tuple[str, ...] = ()
    prefix: str = RECIPE


@dataclass(frozen=True)
class Accepted:
    """The answer to a submit: the job as plain data, made now or by an earlier request with the same key."""

    body: dict[str, Any]
    status: int
    replayed: bool

    @property
    def job_id(self) -> str:
        """Which job."""
        return str(self.body["id"])

    def headers(self) -> dict[str, str]:
        """Where the job is, and whether it was there already."""
        said = {"Location": f"/v1/jobs/{self.job_id}"}
        return said | {"Idempotent-Replayed": "true"} if self.replayed else said

    def answer(self) -> Answer:
        """As the caller gets it."""
        return Answer(self.body, self.status, self.headers())


@dataclass(frozen=True)
class Key:
    """An ``Idempotency-Key`` and the hash of the request it came with."""

    key: str
    hashed: str


def key_of(request: Request, key: str | None, asked: Any) -> Key | None:
    """The idempotency key of a request that asks for ``asked`` (plain data, or a body's bytes), if any."""
    if key is None:
        return None
    path = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
    return Key(key, idempotency.request_hash(request.method, path, asked))


def read_json(raw: bytes) -> tuple[Order, Any]:
    """The order in a JSON body, and what was sent; ``recipe`` is ours or a mergekit configuration."""
    document = load_json(raw)
    return order_of(document), document


def order_of(document: Any) -> Order:
    """The order that plain data describes; the recipe may be a list of mergekit's documents. Raises a 422
    problem with a pointer for every mistake.
    """
    if isinstance(document, dict) and document.get("kind", "merge") != "merge":
        return Order(_request(document), prefix=RECIPE if document["kind"] == "search" else "")
    recipe = document.get("recipe") if isinstance(document, dict) else None
    documents: list[Any] = recipe if isinstance(recipe, list) else [recipe]
    if not isinstance(document, dict) or not documents or not all(isinstance(d, dict) for d in documents):
        detail = _recipe_missing(document)
        errors = [{"in": "body", "pointer": RECIPE, "code": "recipe_missing", "detail": detail}]
        raise Problem("validation_failed", detail, errors=errors)
    translation = _translation(documents, RECIPE)
    return Order(_request({**document, "recipe": translation.recipe}), translation.notes)


def _recipe_missing(document: Any) -> str:
    if not isinstance(document, dict):
        return "send an object"
    if "recipe" not in document and document.keys() & {"steps", "sources", "merge_method"}:
        return 'this is a recipe without its order: send {"recipe": {...}}'
    return "the field recipe must hold an object"


def read_yaml(raw: bytes, options: Mapping[str, str]) -> Order:
    """The order in a YAML body: a whole one, or a recipe (ours or mergekit's), when the rest comes from the
    query parameters.
    """
    try:
        documents = load_documents(raw, "yaml")
        if documents[0].keys() & {"recipe", "kind"}:
            return _whole_order(documents, options)
        translation = read_documents(documents)
    except MergeError as error:
        raise from_room(error) from None
    check_tree(translation.recipe.model_dump(mode="json"))
    return Order(_request({**_options(options), "recipe": translation.recipe}), translation.notes, "")


def _whole_order(documents: Sequence[dict[str, Any]], options: Mapping[str, str]) -> Order:
    if options or len(documents) > 1:
        detail = "an order in YAML is one document and says everything itself: leave out " + (
            f"the parameter {next(iter(options))!r}" if options else "the other documents"
        )
        raise Problem("validation_failed", detail)
    check_tree(documents[0])
    return order_of(documents[0])


def plan(desk: Desk, caller: Caller, order: Order) -> Ready:
    """Looks at the models and plans. Raises a problem with all findings, ``PlanTimeout``, ``HubError``."""
    request, settings = order.request, desk.settings
    token = None
    if request.hub_credential is not None:
        with desk.begin() as session:
            token = credentials.open_token(session, desk.keyring, caller.tenant_id, request.hub_credential)
    started = time.perf_counter()
    try:
        asking = Asking(
            desk.planner,
            token,
            caller.tenant_id,
            settings.plan_timeout_seconds,
            notes=order.notes,
            scratch_free=room(settings.scratch),
        )
        return plan_order(request, asking)
    except FindingsError as error:
        raise from_room(error, order.prefix) from None
    finally:
        desk.metrics.planning.observe(time.perf_counter() - started)


def preview(desk: Desk, caller: Caller, order: Order) -> Ready:
    """The plan of an order that a submit would accept but for the quota; raises as ``plan`` does, and what
    ``submit.check`` raises.
    """
    planned = plan(desk, caller, order)
    with desk.begin() as session:
        submit.check(session, caller, order.request, planned, desk.rules)
    return planned


def accept(desk: Desk, caller: Caller, order: Order, key: Key | None = None) -> Accepted:
    """Plans a job, then records it in one transaction with the idempotency key's answer.

    The key is reserved while the models are looked at, so a second request with it meanwhile gets 409; no
    transaction is open then. When the Hub is slow or away the job is accepted unplanned, in phase
    ``resolving``, and a worker plans it.
    """
    with reserved(desk, caller, key) as held:
        if isinstance(held, Replay):
            return Accepted(held.body, held.status, True)
        planned = _plan_if_possible(desk, caller, order)
        with desk.begin() as session:
            try:
                job = submit.submit(session, caller, order.request, planned, desk.rules)
            except FindingsError as error:
                raise from_room(error, order.prefix) from None
            body = keep_answer(session, held, job_out(job, notes=order.notes))
    desk.metrics.accepted.labels(job.method or "none").inc()
    return Accepted(body, 202, False)


async def placed(
    request: Request, desk: Desk, caller: Caller, order: Callable[[], Order], asked: Any, key: str | None
) -> Accepted:
    """Has an order accepted, patiently; ``asked`` is what was sent, ``key`` the ``Idempotency-Key``."""
    return await patiently(desk, lambda: accept(desk, caller, order(), key_of(request, key, asked)))


async def patiently(desk: Desk, work: Callable[[], Found]) -> Found:
    """Runs ``work`` in one of the threads that may wait for a Hub: a slow one never holds up reading."""
    return await anyio.to_thread.run_sync(work, limiter=desk.planning_threads)


def again(desk: Desk, caller: Caller, job_id: str, key: Key | None = None) -> Accepted:
    """Retries a job. Raises a 404 problem, or ``IllegalState`` unless it ended badly."""
    with reserved(desk, caller, key) as held:
        if isinstance(held, Replay):
            return Accepted(held.body, held.status, True)
        with desk.begin() as session:
            job = own_job(session, caller, job_id)
            made = submit.retry(session, caller, job, desk.rules)
            return Accepted(keep_answer(session, held, job_out(made)), 202, False)


def order_to_append(desk: Desk, caller: Caller, job_id: str, request: AppendRequest) -> Order:
    """The order by which a model joins the result of an earlier job. Raises a 404 problem, ``IllegalState``,
    or a 422 problem where nothing can join it.
    """
    with desk.read() as session:
        job = own_job(session, caller, job_id)
    try:
        return Order(append_order(job, request))
    except MergeError as error:
        raise from_room(error) from None


def order_of_point(desk: Desk, caller: Caller, job_id: str, number: int, request: PointRequest) -> Order:
    """The merge of one candidate of a search. Raises a 404 problem and ``IllegalState``."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        rows = trials.of_search(session, job.root_id, number - 1, 1)
        trial = found(next((row for row in rows if row.number == number), None), "trial", str(number))
        return Order(point_order(job, trial, request))


@contextmanager
def reserved(desk: Desk, caller: Caller, key: Key | None) -> Iterator[Reservation | Replay | None]:
    """Holds the idempotency key of a request, if it has one; a request that fails frees it."""
    if key is None:
        yield None
        return
    lease = desk.settings.plan_timeout_seconds + idempotency.LEASE_SECONDS
    with desk.begin() as session:
        held = idempotency.reserve(session, caller.tenant_id, key.key, key.hashed, lease)
    try:
        yield held
    except BaseException:
        if isinstance(held, Reservation):
            with desk.begin() as session:
                idempotency.release(session, held)
        raise


def keep_answer(session: Session, held: Reservation | None, body: dict[str, Any]) -> dict[str, Any]:
    """Keeps the answer of a request that has an idempotency key; gives it as it would be replayed."""
    if held is None:
        return body
    plain: dict[str, Any] = to_jsonable_python(body)
    idempotency.finish(session, held, 202, plain)
    return plain


def _plan_if_possible(desk: Desk, caller: Caller, order: Order) -> Ready | None:
    try:
        return plan(desk, caller, order)
    except PlanTimeout:
        return None
    except HubError as error:
        if not error.retryable:
            raise
        return None


def job_now(desk: Desk, caller: Caller, job_id: str) -> dict[str, Any] | None:
    """The job as it is now, if it is the caller's."""
    with desk.read() as session:
        job = jobs.of_tenant(session, caller.tenant_id, job_id)
        return job_out(job) if job else None


def _translation(documents: Sequence[dict[str, Any]], prefix: str) -> Translation:
    try:
        return read_documents(documents)
    except MergeError as error:
        raise from_room(error, prefix) from None


def _request(document: dict[str, Any]) -> JobOrder:
    try:
        return read_order(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        for each in found:
            each["loc"] = location_in(document, each["loc"], each["type"] == "missing")
        raise from_validation(found, "body") from None


def _options(query: Mapping[str, str]) -> dict[str, Any]:
    """Query parameters as the fields of a JSON body; unknown ones are refused."""
    body: dict[str, Any] = {}
    for name, value in query.items():
        if name in OUTPUT_OPTIONS:
            body.setdefault("output", {})[name] = value
        elif name in WEBHOOK_OPTIONS:
            parts = value.split(",") if name == "webhook_events" else value
            body.setdefault("webhook", {})[WEBHOOK_OPTIONS[name]] = parts
        elif name in OTHER_OPTIONS:
            body[name] = value
        elif name.startswith("metadata[") and name.endswith("]"):
            body.setdefault("metadata", {})[name[len("metadata[") : -1]] = value
        else:
            detail = f"there is no parameter {name!r} for a YAML body"
            error = {"in": "query", "pointer": f"/{name}", "code": "extra_forbidden", "detail": detail}
            raise Problem("validation_failed", detail, errors=[error])
    return body
