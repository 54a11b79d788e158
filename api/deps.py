"""What a route asks for: the desk (everything a process holds), and the caller, let in and counted."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import anyio
from anyio.to_thread import run_sync as in_thread
from fastapi import Depends, Header, Path, Query, Request

from api.auth import Remembered, Signer, bearer_of, check_csrf, derive, session_of, unauthenticated
from api.cursors import Cursors
from api.errors import Problem
from api.feed import POLL_SECONDS, Feed
from api.limits import Limiter
from api.metrics import Metrics
from db import jobs
from db.listen import listen
from db.models.job import Job
from db.session import Session, make_engine, make_sessions
from jobs import keys, tally
from jobs.keyring import Keyring
from jobs.keys import Caller
from jobs.metrics import watch_hub
from jobs.planning import Planner
from jobs.statistics import Shelf
from jobs.submit import Rules
from settings import Settings

THREADS = 8
PLANNING_THREADS = 8
POOL = 12
"""Connections of one process: threads that plan hold none meanwhile, so not every thread needs one."""
KEY, SESSION = "key ", "session "
"""What callers are remembered by, before a secret or an id: no text in one's place is ever the other."""

Row = TypeVar("Row")


class Desk:
    """Everything one API process holds. Nothing is connected before it is used."""

    def __init__(self, settings: Settings, planner: Planner) -> None:
        self.settings = settings
        self.planner = planner
        url = settings.database_url or ""
        self.engine = make_engine(url or "postgresql+psycopg://", pool_size=POOL, max_overflow=0)
        sessions = make_sessions(self.engine)
        self.begin = sessions.begin
        """One transaction: committed at the end of the ``with`` block, rolled back by any exception."""
        self.read = make_sessions(self.engine.execution_options(isolation_level="AUTOCOMMIT"))
        """A session for looking only, each statement on its own: half the ways to the database and back."""
        planner.shelf = planner.shelf or Shelf(self.read)
        secret = settings.secret()
        self.https = settings.url.startswith("https://")
        self.signer = Signer(derive(secret.encode(), "session"), self.https)
        self.cursors = Cursors(derive(secret.encode(), "cursor"))
        self.keyring = Keyring(secret)
        self.limiter = Limiter(settings.broker_url, settings.requests_per_minute)
        self.callers = Remembered(lambda: self.feed.hearing)
        self.rules = Rules(
            keyring=self.keyring,
            max_queued_jobs=settings.max_queued_jobs,
            max_attempts=settings.max_attempts,
            timeout_seconds=settings.job_timeout_seconds,
            model_roots=settings.model_roots,
            allow_http=settings.webhook_allow_http,
        )
        self.feed = Feed(lambda should_stop: listen(url, should_stop), on_key=self.callers.forget)
        self.poll_seconds = POLL_SECONDS
        self.planning_threads = anyio.CapacityLimiter(PLANNING_THREADS)
        self.metrics = Metrics()
        tally.listen(sessions, self.metrics.counts.hear)
        self._end_watch = watch_hub(self.metrics.counts.hear)

    def caller_of_key(self, secret: str) -> Caller:
        """The caller behind an API key; raises ``Unauthenticated``."""

        def find() -> Caller:
            with self.read() as session:
                return keys.authenticate(session, secret)

        return self.callers.get(KEY + secret, find)

    def caller_of_session(self, key_id: str) -> Caller:
        """The caller behind the key that a session cookie names; raises ``Unauthenticated``."""

        def find() -> Caller:
            with self.read() as session:
                return keys.caller_of(session, key_id)

        return self.callers.get(SESSION + key_id, find)

    def close(self) -> None:
        """Gives all connections back."""
        self._end_watch()
        self.limiter.close()
        self.engine.dispose()


def desk_of(request: Request) -> Desk:
    """The desk of the process."""
    desk: Desk = request.app.state.desk
    return desk


async def desk_here(request: Request) -> Desk:
    """As ``desk_of``. Asynchronous, like all that does not block here: that saves the way to a thread."""
    return desk_of(request)


async def admit(request: Request) -> Caller:
    """The caller of a /v1 request, from its API key or its session, after taking a token from its bucket.

    Goes to a thread only when the database or the broker has to be asked.
    """
    desk = desk_of(request)
    desk.feed.start()
    caller = await current_caller(request)
    taken = desk.limiter.take_held(caller.key_id)
    if taken is None and desk.limiter.counts:
        taken = await in_thread(desk.limiter.take, caller.key_id)
    if taken is not None:
        request.scope["answer_headers"].update(taken.headers())
        if not taken.admitted:
            raise Problem("rate_limited", f"the key may send {taken.quota} requests a minute")
    return caller


async def current_caller(request: Request) -> Caller:
    """Who sent this request; a cookie counts only with its CSRF token when something is to be changed."""
    desk = desk_of(request)
    if secret := bearer_of(request):
        return await _remembered(desk, KEY + secret, desk.caller_of_key, secret)
    session = session_of(request, desk.signer)
    if session is None:
        raise unauthenticated()
    check_csrf(request, desk.signer, session)
    return await _remembered(desk, SESSION + session.key_id, desk.caller_of_session, session.key_id)


async def _remembered(desk: Desk, name: str, find: Callable[[str], Caller], given: str) -> Caller:
    held = desk.callers.held(name)
    return held if held is not None else await in_thread(find, given)


def may(scope: str) -> Callable[..., Awaitable[Caller]]:
    """A dependency that lets in callers with ``scope``."""

    async def allowed(caller: Annotated[Caller, Depends(admit)]) -> Caller:
        caller.require(scope)
        return caller

    return allowed


def takes(*content_types: str) -> Callable[..., Awaitable[None]]:
    """A dependency that refuses bodies of any other content type with 415, once the caller is let in."""

    async def check(request: Request, _caller: Annotated[Caller, Depends(admit)]) -> None:
        if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
            return
        if content_type_of(request) not in content_types:
            raise Problem(
                "media_type_unsupported",
                f"send the body as {' or '.join(content_types)}",
                headers={"Accept": ", ".join(content_types)},
            )

    return check


def content_type_of(request: Request) -> str:
    """The body's content type without parameters, lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class PageAsked:
    """Which part of a list is wanted."""

    limit: int
    cursor: str | None


async def page_asked(
    limit: Annotated[int, Query(ge=1, le=100, description="Rows on a page")] = 20,
    cursor: Annotated[str | None, Query(max_length=512, description="next_cursor of the page before")] = None,
) -> PageAsked:
    """``limit`` and ``cursor`` of a list."""
    return PageAsked(limit, cursor)


def found(row: Row | None, what: str, name: str) -> Row:
    """The row, or the 404 that says the same for what is missing and for what is another tenant's."""
    if row is None:
        raise Problem("not_found", f"there is no {what} {name!r}")
    return row


def own_job(session: Session, caller: Caller, job_id: str) -> Job:
    """The caller's job; raises the 404 problem."""
    return found(jobs.of_tenant(session, caller.tenant_id, job_id), "job", job_id)


InDesk = Annotated[Desk, Depends(desk_here)]
Reader = Annotated[Caller, Depends(may("merges:read"))]
Writer = Annotated[Caller, Depends(may("merges:write"))]
WebhookKeeper = Annotated[Caller, Depends(may("webhooks"))]
KeyKeeper = Annotated[Caller, Depends(may("keys"))]
AnyCaller = Annotated[Caller, Depends(admit)]
Asked = Annotated[PageAsked, Depends(page_asked)]


def _last_seq(
    last_event_id: Annotated[str | None, Header(description="`seq` of the last event received")] = None,
) -> int | None:
    """Where a stream that broke off goes on; ``None`` where the header names no ``seq``."""
    known = last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) < 19
    return int(last_event_id) if known and last_event_id else None


LastSeq = Annotated[int | None, Depends(_last_seq)]
Id = Annotated[str, Path(max_length=64)]
Number = Annotated[int, Path(ge=0, le=1 << 30)]
"""Of a trial, or a place on a front."""
IdempotencyHeader = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="The same key within three days gives the same answer"),
]
JSON = Depends(takes("application/json"))
