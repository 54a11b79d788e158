"""The pages: signing in, jobs, methods. Every page asks the same functions as the API."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import StringConstraints, ValidationError

from api.auth import session_of
from api.dashboard import access, bundles, fronts, hooks, live, measured, new, score, search, searches, teach
from api.dashboard.draft import methods_by_kind
from api.dashboard.forms import fields_of
from api.dashboard.proven import evidence_of
from api.dashboard.render import STATIC, TEMPLATES, page
from api.dashboard.views import calls_of, job_row, order_of, recipe_of
from api.dashboard.visit import (
    HOME,
    Author,
    CursorAsked,
    Form,
    PageRoute,
    Visit,
    Visitor,
    after_of,
    older_than,
    ordered,
    safe_path,
    same_site,
    see,
    trouble,
)
from api.deps import Desk, Id, InDesk, found, own_job
from api.errors import Problem, from_validation
from api.intake import order_to_append
from db import jobs, reports
from jobs import lifecycle, submit
from jobs.append import AppendRequest
from jobs.errors import Unauthenticated
from jobs.states import State
from merge.guide import advice_on
from merge.recipe import presets
from merge.recipe.document import dump_document
from merge.running.survey.page import render_page
from search.choice import Among

ROWS = 25
STATES = tuple(state.value for state in State)

router = APIRouter(route_class=PageRoute, include_in_schema=False)
StateAsked = Annotated[str, Query(max_length=20)]
SayAsked = Annotated[list[Annotated[str, StringConstraints(max_length=64)]] | None, Query(max_length=8)]


def mount(app: FastAPI) -> None:
    """Adds every page and static file to the application."""
    for each in (
        new.router,
        access.router,
        bundles.router,
        fronts.router,
        hooks.router,
        live.router,
        measured.router,
        score.router,
        search.router,
        searches.router,
        teach.router,
        router,
    ):
        app.include_router(each)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.state.show_problem = trouble
    TEMPLATES.globals["description"] = app.openapi_url


@router.get("/")
def home() -> Response:
    """The front door."""
    return see(HOME)


@router.get("/login")
def sign_in(request: Request, desk: InDesk, next: str = HOME) -> Response:
    """Asks for an API key; who has signed in goes on."""
    if _has_signed_in(request, desk):
        return see(safe_path(next))
    return page("login.html", wrong="", next=safe_path(next))


def _has_signed_in(request: Request, desk: Desk) -> bool:
    """Whether the session is of a key that still holds: with any other every page would lead back here."""
    session = session_of(request, desk.signer)
    if session is None:
        return False
    try:
        desk.caller_of_session(session.key_id)
    except Unauthenticated:
        return False
    return True


@router.post("/login")
def sign_in_with(request: Request, desk: InDesk, form: Form) -> Response:
    """Turns an API key into a session of the browser."""
    if not same_site(request):
        raise Problem("csrf_failed", "this form was sent from another site")
    onward = safe_path(str(form.get("next") or HOME))
    try:
        caller = desk.caller_of_key(str(form.get("key") or "").strip())
    except Unauthenticated as error:
        return page("login.html", 401, wrong=str(error), next=onward)
    answer = see(onward)
    before = desk.signer.read(request.cookies.get(desk.signer.cookie, ""))
    desk.signer.set_cookie(answer, desk.signer.session(caller.key_id, before=before))
    return answer


@router.post("/logout")
def sign_out(visit: Author) -> Response:
    """Ends the session of this browser."""
    answer = see("/login")
    visit.desk.signer.clear_cookie(answer)
    return answer


@router.get("/jobs")
def job_list(visit: Visitor, state: StateAsked = "", cursor: CursorAsked = "") -> Response:
    """The jobs, newest first, kept up to date."""
    return page("jobs.html", here="/jobs", csrf=visit.csrf, **_listed(visit, state, cursor))


@router.get("/jobs/rows")
def job_rows(visit: Visitor, state: StateAsked = "", cursor: CursorAsked = "") -> Response:
    """The list alone, for the page to put in place of the one it shows."""
    return page("_rows.html", **_listed(visit, state, cursor))


@router.get("/jobs/{job_id}")
def job(visit: Visitor, job_id: Id, say: SayAsked = None, among: Among = "measured") -> Response:
    """One job: where it stands, what happened, what came of it, and the same call for scripts. Of a search
    with a front, ``say`` chooses a point.
    """
    watch = live.Watch(visit, job_id, tuple(say or ()), among)
    row, shown = watch.look()
    calls = calls_of(order_of(row), visit.desk.settings.url)
    recipe = dump_document(recipe_of(row))
    return page("job.html", here="/jobs", seq=watch.seq, calls=calls, recipe=recipe, **shown)


@router.get("/jobs/{job_id}/report")
def report(visit: Visitor, job_id: Id) -> Response:
    """What the merge did to the weights: a page that stands for itself, as it lies beside the weights."""
    visit.caller.require("merges:read")
    with visit.desk.begin() as session:
        row = own_job(session, visit.caller, job_id)
        survey = found(reports.of_job(session, row.id), "report", row.id)
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return HTMLResponse(render_page(survey, title=row.id), headers=headers)


@router.post("/jobs/{job_id}/cancel")
def cancel(visit: Author, job_id: Id) -> Response:
    """Asks a job to stop."""
    visit.caller.require("merges:write")
    with visit.desk.begin() as session:
        row = own_job(session, visit.caller, job_id)
        lifecycle.request_cancel(session, row)
    return see(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/retry")
def retry(visit: Author, job_id: Id) -> Response:
    """Starts an ended job again, as a new one."""
    visit.caller.require("merges:write")
    with visit.desk.begin() as session:
        row = own_job(session, visit.caller, job_id)
        again = submit.retry(session, visit.caller, row, visit.desk.rules)
    return see(f"/jobs/{again.id}")


@router.post("/jobs/{job_id}/append")
async def append(visit: Author, form: Form, job_id: Id) -> Response:
    """Lets one more model join what a job has made, as a new job."""
    visit.caller.require("merges:write")
    named = {"adapter" if form.get("adapter") else "model": str(form.get("model") or "").strip()}
    try:
        request = AppendRequest.model_validate({**named, "weight": form.get("weight") or 1.0})
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False), "body") from None
    return await ordered(visit, lambda: order_to_append(visit.desk, visit.caller, job_id, request))


@router.get("/methods")
def method_list(visit: Visitor) -> Response:
    """Every method of the catalogue, and every preset."""
    return page("methods.html", here="/methods", csrf=visit.csrf, groups=methods_by_kind())


@router.get("/methods/{name}")
def method(visit: Visitor, name: Id) -> Response:
    """One method: what it does, what it needs, its settings."""
    entry = found(presets.listing().get(name), "method", name)
    fields = fields_of(entry.schema, "", {})
    return page(
        "method.html",
        here="/methods",
        csrf=visit.csrf,
        entry=entry,
        advice=advice_on(entry),
        fields=fields,
        evidence=evidence_of(entry.name),
    )


def _listed(visit: Visit, state: str, cursor: str) -> dict[str, Any]:
    visit.caller.require("merges:read")
    state = state if state in STATES else ""
    filters = {"page": "jobs", "state": state}
    after = after_of(visit, cursor, filters)
    with visit.desk.begin() as session:
        rows = jobs.page(session, visit.caller.tenant_id, limit=ROWS + 1, after=after, state=state or None)
    shown, older = [job_row(each) for each in rows[:ROWS]], older_than(visit, rows, ROWS, filters)
    only = {"state": state} if state else {}
    here = urlencode(only | ({"cursor": cursor} if cursor else {}))
    return {
        "jobs": shown,
        "state": state,
        "query": f"?{here}" if here else "",
        "moving": any(each["moving"] or each["state"] == State.QUEUED for each in shown),
        "older": urlencode(only | {"cursor": older}) if older else "",
    }
