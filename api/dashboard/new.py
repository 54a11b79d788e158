"""The page of a new job: the form, its plan while it is being filled in, and sending it off."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import ValidationError

from api.dashboard.draft import PUBLISH, Draft, input_of, methods_by_kind
from api.dashboard.render import page
from api.dashboard.views import estimate_of, found
from api.dashboard.visit import Author, Form, PageRoute, Visit, Visitor, see
from api.deps import found as must_be
from api.errors import Problem, field_errors, to_problem
from db import jobs
from hub.errors import HubError
from jobs import credentials, submit
from jobs.errors import JobError, PlanTimeout
from jobs.planning import Planned
from jobs.request import JobRequest
from merge.errors import FindingsError, MergeError
from merge.mergekit import read_recipe
from merge.recipe import recipe_from

router = APIRouter(route_class=PageRoute, include_in_schema=False)

Known = JobError | HubError | MergeError | ValidationError
KNOWN = (JobError, HubError, MergeError, ValidationError)


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
            draft = Draft.from_recipe(row.spec.get("recipe") or row.recipe, row.spec.get("output") or {})
    return _form(visit, draft)


@router.post("/jobs/new")
def change(visit: Author, form: Form) -> Response:
    """Carries out the button that was pressed: adds a row, opens a tab, plans, or starts the job."""
    visit.caller.require("merges:write")
    draft, action = Draft.from_form(form), str(form.get("action") or "plan")
    if action == "submit":
        return _start(visit, draft)
    if action == "plan":
        return _form(visit, draft, _plan(visit, draft))
    draft.act(action)
    return _form(visit, draft)


@router.post("/jobs/new/plan")
def plan(visit: Author, form: Form) -> Response:
    """The plan alone, for the page to show beside the form."""
    visit.caller.require("merges:write")
    return page("_plan.html", plan=_plan(visit, Draft.from_form(form)))


def _start(visit: Visit, draft: Draft) -> Response:
    """Starts the job and goes to its page; a draft that cannot work is shown again with every reason."""
    try:
        request, notes = _order(draft)
        row = visit.desk.orders.submit(visit.caller, request, notes)
    except KNOWN as error:
        shown = _refused(draft, error)
        return _form(visit, draft, shown, status=shown["status"])
    return see(f"/jobs/{row.id}")


def _plan(visit: Visit, draft: Draft) -> dict[str, Any] | None:
    """What the page says of the draft's plan; nothing while no model is named."""
    if draft.is_blank:
        return None
    try:
        request, notes = _order(draft)
        return _shown(visit.desk.orders.plan(visit.caller, request, notes))
    except PlanTimeout as error:
        return _empty() | {"pending": f"{error} The job can be started all the same; it is then planned first."}
    except KNOWN as error:
        return _refused(draft, error)


def _order(draft: Draft) -> tuple[JobRequest, tuple[str, ...]]:
    """The request that the draft makes, and what a mergekit configuration in it was translated to."""
    wishes = draft.wishes()
    if draft.tab == "yaml":
        translation = read_recipe(draft.document, "yaml")
        recipe, notes = translation.recipe, translation.notes
    else:
        document = draft.recipe()
        if draft.wrong:
            raise Problem("recipe_invalid", "some fields cannot be read")
        recipe, notes = recipe_from(document), ()
    return JobRequest.model_validate({"recipe": recipe, **wishes}), notes
