"""The page of a new job: the form, its plan while it is being filled in, and sending it off."""

from collections.abc import Callable
from typing import Annotated, Any

import anyio.to_thread
import yaml
from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from api import intake
from api.dashboard.draft import PUBLISH, SET_KINDS, Draft, input_of, methods_by_kind
from api.dashboard.ordering import KNOWN, tokens_of
from api.dashboard.render import page
from api.dashboard.views import estimate_of, found, measuring_of, order_of, stage_said
from api.dashboard.visit import Author, Form, PageRoute, Visit, Visitor, see
from api.deps import found as must_be
from api.errors import kind_of, to_problem
from db import jobs
from hub.errors import HubError
from jobs.errors import PlanTimeout, RequestInvalid
from jobs.kinds import Ready
from merge.document import load_documents

LATER = "The job can be started all the same; its worker then plans it first."
EMPTY: dict[str, Any] = {
    "refused": "",
    "pending": "",
    "findings": [],
    "estimate": [],
    "inputs": [],
    "stages": [],
    "notes": [],
    "details": "",
}

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/jobs/new")
def blank(
    visit: Visitor,
    method: Annotated[str, Query(max_length=64)] = "",
    from_: Annotated[str, Query(alias="from", max_length=64)] = "",
) -> Response:
    """An empty form, one that begins with a method, or one filled in from an earlier job."""
    visit.caller.require("merges:write")
    draft = Draft.with_method(method)
    if from_:
        with visit.desk.begin() as session:
            row = must_be(jobs.of_tenant(session, visit.caller.tenant_id, from_), "job", from_)
            draft = Draft.from_order(order_of(row)) if "recipe" in row.spec else draft
    return _form(visit, draft)


@router.post("/jobs/new")
async def change(visit: Author, form: Form) -> Response:
    """Carries out the button that was pressed: adds a row, opens a tab, plans, or starts the job."""
    visit.caller.require("merges:write")
    draft, action = Draft.from_form(form), str(form.get("action") or "plan")
    if action == "submit":
        return await _planning(visit, lambda: _start(visit, draft))
    if action == "plan":
        return await _planning(visit, lambda: _form(visit, draft, _plan(visit, draft)))
    return await run_in_threadpool(lambda: _form(visit, draft.act(action)))


@router.post("/jobs/new/plan")
async def plan(visit: Author, form: Form) -> Response:
    """The plan alone, for the page to show beside the form."""
    visit.caller.require("merges:write")
    draft = Draft.from_form(form)
    return await _planning(visit, lambda: page("_plan.html", plan=_plan(visit, draft)))


async def _planning(visit: Visit, answer: Callable[[], Response]) -> Response:
    """Runs ``answer`` in one of the few threads that may wait for a Hub."""
    return await anyio.to_thread.run_sync(answer, limiter=visit.desk.planning_threads)


def _start(visit: Visit, draft: Draft) -> Response:
    """Starts the job and goes to its page; a draft that cannot work is shown again with every reason."""
    try:
        accepted = intake.accept(visit.desk, visit.caller, _order(draft))
    except KNOWN as error:
        refused = _refused(draft, error)
        return _form(visit, draft, refused, to_problem(error).status_code)
    return see(f"/jobs/{accepted.job_id}")


def _plan(visit: Visit, draft: Draft) -> dict[str, Any] | None:
    """What the page says of the draft's plan; nothing while no model is named."""
    if draft.is_blank:
        return None
    try:
        return _seen(intake.plan(visit.desk, visit.caller, _order(draft)))
    except KNOWN as error:
        later = isinstance(error, PlanTimeout) or (isinstance(error, HubError) and error.retryable)
        return EMPTY | {"pending": f"{error} {LATER}"} if later else _refused(draft, error)


def _order(draft: Draft) -> intake.Order:
    """The order that the draft makes; raises a problem for what cannot be read."""
    recipe = load_documents(draft.document, "yaml") if draft.tab == "yaml" else draft.recipe()
    body = {"recipe": recipe, **draft.wishes()}
    if draft.wrong:
        raise RequestInvalid("Some fields cannot be read.")
    return intake.order_of(body)


def _seen(planned: Ready) -> dict[str, Any]:
    summary = planned.summary
    return EMPTY | {
        "findings": found(summary["findings"]),
        "estimate": [*estimate_of(summary), *measuring_of(summary)],
        "inputs": summary["inputs"],
        "notes": summary["translation"],
        "stages": [stage_said(name, stage) for name, stage in summary["stages"].items()],
        "details": yaml.safe_dump(summary["classes"], sort_keys=False, allow_unicode=True, width=60),
    }


def _refused(draft: Draft, error: Exception) -> dict[str, Any]:
    """Why the draft cannot work, beside its plan and at the fields that are meant."""
    problem = to_problem(error)
    findings = []
    for each in problem.errors:
        pointer = str(each.get("pointer") or "")
        findings.append({"severity": "error", **each, "message": each["detail"], "pointer": pointer or None})
        if input_of(pointer) in draft.inputs():
            draft.wrong.setdefault(input_of(pointer), str(each["detail"]))
    if draft.wrong and not findings:
        findings = [{"code": "field", "message": each} for each in draft.wrong.values()]
    said = str(problem.detail) if not findings else kind_of(problem.code).title
    return EMPTY | {"refused": said.rstrip(".") + ".", "findings": found(findings)}


def _form(visit: Visit, draft: Draft, plan: dict[str, Any] | None = None, status: int = 200) -> Response:
    return page(
        "_draft.html" if visit.partly else "new.html",
        status,
        here="/jobs/new",
        csrf=visit.csrf,
        draft=draft,
        plan=plan,
        groups=methods_by_kind(),
        publish=PUBLISH,
        set_kinds=SET_KINDS,
        credentials=tokens_of(visit),
    )
