"""From what a caller sent to a planned, recorded job."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from api.bodies import check_tree, load_json
from api.deps import Desk
from api.errors import Problem, from_room, from_validation
from api.schemas.jobs import JobOut, job_out
from db import jobs
from hub.errors import HubError
from jobs import credentials, idempotency, submit
from jobs.errors import PlanTimeout
from jobs.keys import Caller
from jobs.planning import Planned
from jobs.request import JobRequest
from merge.errors import FindingsError, MergeError
from merge.mergekit import Translation, is_mergekit, read_recipe, translate
from merge.recipe import recipe_from

RECIPE = "/recipe"
OUTPUT_OPTIONS = ("repo", "private", "revision", "overwrite", "publish", "confirm_public")
WEBHOOK_OPTIONS = {"webhook_url": "url", "webhook_events": "events"}
OTHER_OPTIONS = ("priority", "timeout", "expires_in", "hub_credential")


@dataclass(frozen=True)
class Order:
    """A request checked for form. ``notes`` say how a mergekit configuration was read; ``prefix`` is where
    the recipe lies in what the caller sent, so that findings point there.
    """

    request: JobRequest
    notes: tuple[str, ...] = ()
    prefix: str = RECIPE


@dataclass(frozen=True)
class Accepted:
    """The answer to a submit: the job as JSON, made now or by an earlier request with the same key."""

    body: dict[str, Any]
    status: int
    replayed: bool

    @property
    def job_id(self) -> str:
        """Which job."""
        return str(self.body["id"])


@dataclass(frozen=True)
class Key:
    """An ``Idempotency-Key`` and the hash of the request it came with."""

    key: str
    hashed: str


def read_json(raw: bytes) -> Order:
    """The order in a JSON body; ``recipe`` is ours or a mergekit configuration."""
    return order_of(load_json(raw))


def order_of(document: Any) -> Order:
    """The order that plain data describes. Raises a 422 problem with a pointer for every mistake."""
    if not isinstance(document, dict) or not isinstance(document.get("recipe"), dict):
        detail = "the field recipe must hold an object" if isinstance(document, dict) else "send an object"
        errors = [{"in": "body", "pointer": RECIPE, "code": "recipe_missing", "detail": detail}]
        raise Problem("validation_failed", detail, errors=errors)
    translation = _translation(document["recipe"], RECIPE)
    return Order(_request({**document, "recipe": translation.recipe}), translation.notes)


def read_yaml(raw: bytes, options: Mapping[str, str]) -> Order:
    """The order in a YAML body (ours or mergekit's); all but the recipe comes from the query parameters."""
    try:
        translation = read_recipe(raw, "yaml")
    except MergeError as error:
        raise from_room(error) from None
    check_tree(translation.recipe.model_dump(mode="json"))
    return Order(_request({**_options(options), "recipe": translation.recipe}), translation.notes, "")


def plan(desk: Desk, caller: Caller, order: Order) -> Planned:
    """Looks at the models and plans. Raises a problem with all findings, ``PlanTimeout``, ``HubError``."""
    request, settings = order.request, desk.settings
    token = None
    if request.hub_credential is not None:
        with desk.begin() as session:
            token = credentials.open_token(session, desk.keyring, caller.tenant_id, request.hub_credential)
    room = shutil.disk_usage(settings.scratch).free if settings.scratch.is_dir() else None
    started = time.perf_counter()
    try:
        return desk.planner.plan(
            request.recipe,
            token,
            caller.tenant_id,
            settings.plan_timeout_seconds,
            notes=order.notes,
            scratch_free=room,
        )
    except FindingsError as error:
        raise from_room(error, order.prefix) from None
    finally:
        desk.metrics.planning.observe(time.perf_counter() - started)


def accept(desk: Desk, caller: Caller, order: Order, key: Key | None = None) -> Accepted:
    """Plans and records a job, all in one transaction with the idempotency key's answer.

    The key is held while the models are looked at, so a second request with it meanwhile gets 409. When the
    Hub is slow or away the job is accepted unplanned, in phase ``resolving``, and a worker plans it.
    """
    with desk.begin() as session:
        if key is not None:
            replay = idempotency.begin(session, caller.tenant_id, key.key, key.hashed)
            if replay is not None:
                return Accepted(replay.body, replay.status, True)
        planned = _plan_if_possible(desk, caller, order)
        try:
            job = submit.submit(session, caller, order.request, planned, desk.rules)
        except FindingsError as error:
            raise from_room(error, order.prefix) from None
        body = job_out(job, notes=order.notes).model_dump(mode="json")
        if key is not None:
            idempotency.finish(session, caller.tenant_id, key.key, key.hashed, 202, body)
    desk.metrics.accepted.labels(job.method or "none").inc()
    return Accepted(body, 202, False)


def _plan_if_possible(desk: Desk, caller: Caller, order: Order) -> Planned | None:
    try:
        return plan(desk, caller, order)
    except PlanTimeout:
        return None
    except HubError as error:
        if not error.retryable:
            raise
        return None


def job_now(desk: Desk, caller: Caller, job_id: str) -> JobOut | None:
    """The job as it is now, if it is the caller's."""
    with desk.read() as session:
        job = jobs.of_tenant(session, caller.tenant_id, job_id)
        return job_out(job) if job else None


def _translation(document: dict[str, Any], prefix: str) -> Translation:
    try:
        if is_mergekit(document):
            return translate(document)
        return Translation(recipe_from(document), ())
    except MergeError as error:
        raise from_room(error, prefix) from None


def _request(document: dict[str, Any]) -> JobRequest:
    try:
        return JobRequest.model_validate(document)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False), "body") from None


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
