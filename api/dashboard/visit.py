"""Who is looking at a page, what a form brought, and what is shown when something goes wrong."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from fastapi import Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.datastructures import FormData

from api.auth import CSRF_FIELD, check_csrf, session_of, unauthenticated
from api.bodies import check_tree
from api.cursors import Position
from api.dashboard.render import page
from api.deps import Desk, desk_of
from api.errors import Problem, kind_of, to_problem
from api.intake import Order, accept, patiently
from api.paging import Listed
from jobs.keys import Caller

HOME = "/jobs"
LIVE = "/live"
NO_CONTENT = 204


@dataclass(frozen=True)
class Visit:
    """One request of somebody who has signed in; ``csrf`` goes into every form of the answer.

    ``partly`` says that the page asks for a part of itself.
    """

    desk: Desk
    caller: Caller
    csrf: str
    partly: bool


async def form_of(request: Request) -> FormData:
    """The posted form; raises a 400 problem for what cannot be read, or kept by a database, as for any other
    body.
    """
    try:
        form = await request.form()
    except UnicodeError:
        raise Problem("malformed", "the form is not in the charset that it names") from None
    for name, value in form.multi_items():
        check_tree({name: value})
    return form


def visitor(request: Request) -> Visit:
    """The visitor of a page; raises ``unauthenticated``, which becomes the way to the sign-in page."""
    return _visit(request, None)


def author(request: Request, form: Annotated[FormData, Depends(form_of)]) -> Visit:
    """The sender of a form that changes something; raises ``csrf_failed`` for one that is not ours."""
    token = form.get(CSRF_FIELD)
    return _visit(request, token if isinstance(token, str) else "")


def _visit(request: Request, token: str | None) -> Visit:
    desk = desk_of(request)
    session = session_of(request, desk.signer)
    if session is None:
        raise unauthenticated("sign in first")
    check_csrf(request, desk.signer, session, token)
    caller = desk.caller_of_session(session.key_id)
    taken = desk.limiter.take(caller.key_id)
    if taken is not None and not taken.admitted:
        raise Problem("rate_limited", f"the key may send {taken.quota} requests a minute")
    return Visit(desk, caller, desk.signer.csrf_token(session), asks_partly(request))


def asks_partly(request: Request) -> bool:
    """Whether htmx asks, to put the answer into the page that is there."""
    return request.headers.get("hx-request") == "true"


def same_site(request: Request) -> bool:
    """Whether a form sent without a session comes from one of our own pages, as browsers tell."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def safe_path(path: str) -> str:
    """``path`` if it is one of this site, else the list of jobs."""
    ours = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if ours else HOME


def see(path: str) -> RedirectResponse:
    """On to another page, with GET."""
    return RedirectResponse(path, 303)


def after_of(visit: Visit, cursor: str, filters: Mapping[str, Any]) -> tuple[datetime, str] | None:
    """The row after which a page of a list begins."""
    at = visit.desk.cursors.read(cursor, filters) if cursor else None
    return None if at is None else (at.created_at, at.id)


def older_than(visit: Visit, rows: Sequence[Listed], shown: int, filters: Mapping[str, Any]) -> str:
    """The cursor of the next page of a list of which so many rows are shown; nothing on the last page."""
    last = rows[shown - 1] if len(rows) > shown else None
    return visit.desk.cursors.write(Position(last.created_at, last.id), filters) if last else ""


async def ordered(visit: Visit, order: Callable[[], Order]) -> Response:
    """Places an order that a page has made in one click, and goes on to its job."""
    accepted = await patiently(visit.desk, lambda: accept(visit.desk, visit.caller, order()))
    return see(f"/jobs/{accepted.job_id}")


class PageRoute(APIRoute):
    """A route for people: a failure becomes a page, a missing session the sign-in page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The usual handler, with failures shown."""
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                return trouble(request, to_problem(error))

        return shown


def trouble(request: Request, problem: Problem) -> Response:
    """What a person sees of ``problem``: a page, a note in the plan, or (in the background) nothing new."""
    partly = asks_partly(request)
    # After any answer but a refusal the browser asks for a stream again at once, without end.
    quiet = problem.status_code if request.url.path.endswith(LIVE) else NO_CONTENT
    writing = request.method == "POST"  # to be led away from a form would empty it
    if problem.code == "unauthenticated" and not writing:
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        sign_in = "/login?" + urlencode({"next": HOME if partly else asked})
        return Response(status_code=quiet, headers={"HX-Redirect": sign_in}) if partly else see(sign_in)
    shown = {
        "status": problem.status_code,
        "code": problem.code,
        "title": kind_of(problem.code).title,
        "detail": problem.detail,
        "errors": problem.errors,
        "request_id": request.scope.get("request_id"),
    }
    if partly and not writing:
        return Response(status_code=quiet, headers={"HX-Reswap": "none"})
    if partly:
        note = page("_trouble.html", problem=shown)
        note.headers.update({"HX-Retarget": "#plan", "HX-Reswap": "innerHTML"})
        return note
    desk = desk_of(request)
    session = session_of(request, desk.signer)
    csrf = desk.signer.csrf_token(session) if session else ""
    answer = page("error.html", problem.status_code, problem=shown, csrf=csrf)
    answer.headers.update(problem.headers or {})
    return answer


CursorAsked = Annotated[str, Query(max_length=512)]
Visitor = Annotated[Visit, Depends(visitor)]
Author = Annotated[Visit, Depends(author)]
Form = Annotated[FormData, Depends(form_of)]
