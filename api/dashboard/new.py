"""The page of a new merge: the form, filled in from a method or an earlier job."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from api.dashboard.draft import PUBLISH, SET_KINDS, Draft, methods_by_kind
from api.dashboard.ordering import carry_out, form_page, plan_alone
from api.dashboard.views import order_of
from api.dashboard.visit import Author, Form, PageRoute, Visit, Visitor
from api.deps import found as must_be
from db import jobs

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
    return await carry_out(visit, draft, action, lambda plan, status: _form(visit, draft, plan, status))


@router.post("/jobs/new/plan")
async def plan(visit: Author, form: Form) -> Response:
    """The plan alone, for the page to show beside the form."""
    visit.caller.require("merges:write")
    return await plan_alone(visit, Draft.from_form(form))


def _form(visit: Visit, draft: Draft, plan: dict[str, Any] | None = None, status: int = 200) -> Response:
    return form_page(
        visit,
        "new.html",
        "/jobs/new",
        plan,
        status,
        draft=draft,
        groups=methods_by_kind(),
        publish=PUBLISH,
        set_kinds=SET_KINDS,
    )
