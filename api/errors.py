"""Any error becomes one problem body (RFC 9457). A code is stable; its title and status are listed here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from traceback import format_exception
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from db.session import is_away
from hub.errors import HubError
from jobs.errors import JobError, RequestInvalid, Unauthenticated
from merge.errors import FindingsError, MergeError

log = structlog.get_logger("api.errors")

PROBLEM_TYPE = "application/problem+json"
CHALLENGE = 'Bearer realm="mergery"'
RETRY_SECONDS = 5


@dataclass(frozen=True)
class Kind:
    """Status and title of one problem code."""

    status: int
    title: str


KINDS: Mapping[str, Kind] = {
    "malformed": Kind(400, "The request body cannot be read"),
    "cursor_invalid": Kind(400, "The cursor is not one of ours, or belongs to other filters"),
    "unauthenticated": Kind(401, "A valid API key is needed"),
    "csrf_failed": Kind(403, "The form is stale; load the page again"),
    "scope_missing": Kind(403, "The API key lacks a scope"),
    "not_found": Kind(404, "There is nothing here"),
    "method_not_allowed": Kind(405, "This path does not take that method"),
    "not_acceptable": Kind(406, "No form of the answer is acceptable"),
    "illegal_state": Kind(409, "The job is not in a state that allows this"),
    "conflict": Kind(409, "The object is in use"),
    "idempotency_in_progress": Kind(409, "A request with this Idempotency-Key is being answered"),
    "body_too_large": Kind(413, "The request body is too large"),
    "media_type_unsupported": Kind(415, "The request body has a content type this path does not take"),
    "validation_failed": Kind(422, "A field is missing, unknown or wrong"),
    "recipe_invalid": Kind(422, "The recipe is wrong"),
    "append_refused": Kind(422, "No model can join this result"),
    "plan_refused": Kind(422, "The recipe cannot work on these models"),
    "idempotency_mismatch": Kind(422, "This Idempotency-Key was used with another request"),
    "plan_timeout": Kind(504, "Planning took too long"),
    "rate_limited": Kind(429, "Too many requests"),
    "quota_exceeded": Kind(429, "A quota is used up"),
    "too_many_streams": Kind(429, "Too many open event streams"),
    "internal_error": Kind(500, "The service failed"),
    "hub_unavailable": Kind(503, "The model hub does not answer"),
    "hub_rate_limited": Kind(503, "The model hub asks us to slow down"),
    "not_ready": Kind(503, "The service is not ready"),
}

_BY_STATUS: Mapping[int, str] = {
    400: "malformed",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    415: "media_type_unsupported",
    422: "validation_failed",
    429: "rate_limited",
    500: "internal_error",
    503: "not_ready",
}


class Problem(HTTPException):
    """An answer that is not a success. ``errors`` hold ``pointer``, ``code`` and ``detail``."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        chosen = status or kind_of(code).status
        given = dict(headers or {})
        if chosen in (429, 503):
            given.setdefault("Retry-After", str(RETRY_SECONDS))
        super().__init__(chosen, detail, given)
        self.code = code
        self.errors = tuple(errors)


class NothingMore(Exception):
    """A stream that was read to its end is asked for again: 204 tells browsers to stop asking."""


def kind_of(code: str) -> Kind:
    """Status and title of ``code``; a code of another room that is not listed is a 422."""
    return KINDS.get(code) or Kind(422, code.replace("_", " ").capitalize())


def explanation(code: str) -> str | None:
    """What a code means, in a few lines; nothing for one that this service never sends."""
    about = [KINDS[code].title + "."] if code in KINDS else []
    about += [
        (each.__doc__ or "").strip() for each in _raised(JobError, HubError, MergeError) if each.code == code
    ]
    return f"{code} (HTTP {kind_of(code).status})\n\n" + "\n\n".join(about) + "\n" if about else None


def _raised(*roots: Any) -> Iterator[Any]:
    for each in roots:
        yield each
        yield from _raised(*each.__subclasses__())


def problem_body(
    code: str,
    detail: str,
    *,
    status: int | None = None,
    base_url: str = "",
    instance: str | None = None,
    request_id: str | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The problem details object; ``type`` is a page of this service that describes ``code``."""
    kind = kind_of(code)
    body: dict[str, Any] = {
        "type": f"{base_url}/problems/{code}",
        "title": kind.title,
        "status": status or kind.status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "request_id": request_id,
        "errors": [dict(each) for each in errors],
    }
    return body


def problem_response(request: Request, problem: Problem) -> Response:
    """``problem`` as the answer to ``request``: a problem body, or a page to a browser on its way through
    pages.
    """
    if is_page(request):
        shown: Response = request.app.state.show_problem(request, problem)
        return shown
    body = problem_body(
        problem.code,
        problem.detail,
        status=problem.status_code,
        base_url=request.app.state.desk.settings.url,
        instance=request.url.path,
        request_id=request.scope.get("request_id"),
        errors=problem.errors,
    )
    return JSONResponse(body, problem.status_code, dict(problem.headers or {}), PROBLEM_TYPE)


def is_page(request: Request) -> bool:
    """Whether a browser asks for a page: programs ask below ``/v1``, or for no HTML."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1")


def pointer_of(location: Iterable[int | str]) -> str:
    """JSON pointer (RFC 6901) of a pydantic location."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def location_in(sent: Any, location: Sequence[int | str], absent: bool) -> tuple[int | str, ...]:
    """A pydantic location as a way into what was sent: without the forms that were tried there. What lies at
    its end may be ``absent``.
    """
    way = []
    for part in location:
        places = sent if isinstance(sent, dict) else range(len(sent)) if isinstance(sent, list) else ()
        if part in places:
            sent = sent[part]
            way.append(part)
    return (*way, *location[-1:]) if absent else tuple(way)


def field_errors(details: Sequence[Any], place: str | None = None) -> list[dict[str, Any]]:
    """Pydantic's errors in our form; never repeats the offending input, which may hold a secret.

    ``place`` is where all of them were found; without it the first part of each location says so. A check of
    several fields may say itself which it means.
    """
    found = []
    for each in details:
        location = list(each["loc"])
        where = place or (str(location.pop(0)) if location else "body")
        inside = getattr((each.get("ctx") or {}).get("error"), "pointer", "")
        pointer = pointer_of(location) + inside
        detail = str(each["msg"]).removeprefix("Value error, ")
        found.append({"in": where, "pointer": pointer, "code": each["type"], "detail": detail})
    return [each for each in found if not _follows(each, found)]


def _follows(error: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list is only too short because items of it are wrong, which is told."""
    inside = error["pointer"] + "/"
    return error["code"] == "too_short" and any(each["pointer"].startswith(inside) for each in errors)


def from_validation(details: Sequence[Any], place: str | None = None) -> Problem:
    """One problem for pydantic errors: 400 when the body was not JSON at all, else 422."""
    errors = field_errors(details, place)
    if any(each["code"] == "json_invalid" for each in errors):
        return Problem("malformed", "the request body is not valid JSON", errors=errors)
    first = errors[0] if errors else {"pointer": "", "detail": "the request is not valid"}
    return Problem("validation_failed", f"{first['pointer'] or 'body'}: {first['detail']}", errors=errors)


def from_room(error: JobError | HubError | MergeError, prefix: str = "") -> Problem:
    """A failure of another room, with all its findings. ``prefix`` is where the recipe lies in the body; what
    a search varies lies beside it.
    """
    findings = error.findings if isinstance(error, FindingsError) else ()
    pointers = [each.pointer or "" for each in findings]
    placed = [each if each.startswith("/search/") else prefix + each for each in pointers]
    errors = [
        {"in": "body", "pointer": pointer, "code": each.code, "detail": each.message}
        | {key: value for key, value in each.as_dict().items() if key in ("severity", "model", "tensor")}
        for each, pointer in zip(findings, placed, strict=True)
    ]
    if isinstance(error, RequestInvalid):
        errors = [{"in": "body", "pointer": error.pointer, "code": error.code, "detail": str(error)}]
    headers = {}
    wait = getattr(error, "retry_after", None) or getattr(error, "seconds", None)
    if wait and kind_of(error.code).status in (429, 503):
        headers["Retry-After"] = str(max(1, round(wait)))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = CHALLENGE
    return Problem(error.code, str(error), errors=errors, headers=headers)


def from_http(error: HTTPException) -> Problem:
    """An error raised by the framework itself."""
    code = _BY_STATUS.get(error.status_code, "malformed" if error.status_code < 500 else "internal_error")
    phrase = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != phrase else KINDS[code].title
    return Problem(code, detail, headers=error.headers or {}, status=error.status_code)


def install(app: FastAPI) -> None:
    """Registers the one way from an exception to an answer."""

    def on_problem(request: Request, error: Exception) -> Response:
        problem = to_problem(error)
        if problem.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            problem.headers = {**(problem.headers or {}), "Allow": _allowed(request)}
        return problem_response(request, problem)

    def on_nothing_more(_request: Request, _error: Exception) -> Response:
        return Response(status_code=204)

    app.add_exception_handler(NothingMore, on_nothing_more)
    for kind in (HTTPException, RequestValidationError, JobError, HubError, MergeError):
        app.add_exception_handler(kind, on_problem)


def _allowed(request: Request) -> str:
    """Every method that the address takes; the framework names those of one route alone."""
    routes = [each for each in request.app.routes if not isinstance(each, Mount)]

    def takes(method: str) -> bool:
        asked = {**request.scope, "method": method}
        return any(each.matches(asked)[0] is Match.FULL for each in routes)

    allowed = set(filter(takes, ("DELETE", "GET", "PATCH", "POST", "PUT"))) or {"GET"}
    return ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))


def to_problem(error: Exception) -> Problem:
    """The problem for any exception; what nobody foresaw is logged and becomes ``internal_error``."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return from_validation(error.errors())
        case HTTPException():
            return from_http(error)
        case JobError() | HubError() | MergeError():
            return from_room(error)
    if is_away(error):
        log.warning("database_away", error=str(error))
        return Problem("not_ready", "the database does not answer; try again in a moment")
    log.error("request_failed", error=type(error).__name__, trace="".join(format_exception(error)))
    return Problem(
        "internal_error", "something went wrong on our side; quote the request id when you report it"
    )
