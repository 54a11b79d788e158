"""What wraps every request: its id, the security headers, the size of its body, its place in the metrics."""

import re
import time
from collections.abc import Callable, Mapping

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from api.errors import Problem, problem_response, to_problem

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer our own forms say `Origin: null`, and over plain http nothing else tells where they
    # come from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


NO_STORE = (b"cache-control", b"no-store")


def raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as servers send them."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def request_id_of(scope: Scope) -> str:
    """The caller's own id of the request if it is plain, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            return given if _REQUEST_ID.fullmatch(given) else f"req_{ULID()}"
    return f"req_{ULID()}"


class _Answered(OSError):
    """A request for the head alone has it; what would come after has nobody to go to."""


class Front:
    """Outermost layer: gives the request an id, turns what nobody caught into a problem, measures."""

    def __init__(
        self, app: ASGIApp, *, https: bool, measure: Callable[[str, str, int, float], None] | None = None
    ) -> None:
        self.app = app
        headers = dict(SECURITY_HEADERS)
        if https:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        self.headers = raw_headers(headers)
        self.measure = measure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope["request_id"] = request_id
        scope["answer_headers"] = {}
        # HEAD is a GET whose body the server keeps to itself, as it does for files.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        status, answered = 0, False

        async def finish(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {"X-Request-Id": request_id, **scope["answer_headers"]}
                more = [*self.headers, *raw_headers(added)]
                if scope["path"].startswith("/v1"):
                    more.append(NO_STORE)
                headers = message["headers"]
                there = {name for name, _ in headers}
                headers.extend(each for each in more if each[0] not in there)
            elif inner is not scope and message.get("more_body"):
                await send({"type": "http.response.body"})
                answered = True  # an event stream would have no end
                raise _Answered
            await send(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                    raise Problem("malformed", "the address holds a NUL")
                await self.app(inner, receive, finish)
            except Exception as error:
                if answered:
                    return
                if status:
                    raise
                await problem_response(Request(scope), to_problem(error))(scope, receive, finish)
            finally:
                if self.measure:
                    route = getattr(inner.get("route"), "path", "unmatched")
                    self.measure(scope["method"], route, status, time.perf_counter() - started)


class BodyLimit:
    """Reads the body before anything parses it and refuses what is longer than its path allows, and what is
    compressed: its length says nothing of what it holds.
    """

    def __init__(self, app: ASGIApp, *, limit: Callable[[str], int]) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else None
        if headers is None or not ("content-length" in headers or "transfer-encoding" in headers):
            await self.app(scope, receive, send)
            return
        limit = self.limit(scope["path"])
        try:
            self._check_plain(headers.get("content-encoding", ""))
            body = await self._read(receive, headers.get("content-length"), limit)
        except Problem as problem:
            await problem_response(Request(scope), problem)(scope, receive, send)
            return
        if body is None:
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)

    @staticmethod
    def _check_plain(encoding: str) -> None:
        if encoding.strip().lower() not in ("", "identity"):
            raise Problem(
                "media_type_unsupported",
                "send the body as it is, without a Content-Encoding",
                headers={"Accept-Encoding": "identity", "Connection": "close"},
            )

    @staticmethod
    async def _read(receive: Receive, declared: str | None, limit: int) -> bytes | None:
        """The whole body, or nothing when the caller went away."""
        too_large = Problem(
            "body_too_large", f"the body may hold {limit} bytes", headers={"Connection": "close"}
        )
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)
