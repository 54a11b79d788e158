"""What the forms of all kinds of jobs have in common: an order is planned beside its form, then placed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar

import yaml
from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from api import intake
from api.bodies import check_tree
from api.dashboard.render import page
from api.dashboard.searches import candidates_said, trying_of
from api.dashboard.views import estimate_of, measuring_of, order_of, stage_said, told_findings
from api.dashboard.visit import Author, Form, Visit, see
from api.deps import own_job
from api.errors import Problem, kind_of, to_problem
from hub.errors import HubError
from jobs import credentials
from jobs.asking import Ready
from jobs.errors import JobError, PlanTimeout
from merge.errors import MergeError

KNOWN = (Problem, JobError, HubError, MergeError)
"""What is wrong with an order, and not with the service."""
LATER = "The job can be started all the same; its worker then plans it first."
EMPTY: dict[str, Any] = {
    "refused": "",
    "pending": "",
    "findings": [],
    "estimate": [],
    "made": "",
    "inputs": [],
    "stages": [],
    "notes": [],
    "details": "",
}

EarlierAsked = Annotated[str, Query(alias="from", max_length=64)]
"""The job whose order a form begins with."""


class Wanted(Protocol):
    """What stands in a form."""

    @property
    def wrong(self) -> dict[str, str]:
        """A sentence for each input that cannot be read, or cannot work."""

    @property
    def is_blank(self) -> bool:
        """Whether nothing is there yet that could be planned."""

    def body(self) -> dict[str, Any]:
        """The order, as plain data; what cannot be read is noted in ``wrong``."""

    def input_of(self, pointer: str) -> str:
        """Name of the input that a JSON pointer into the order means; nothing for what has none."""

    def act(self, action: str) -> object:
        """What a button of the form does to it."""


Filled = TypeVar("Filled", bound=Wanted)


def earlier_order(visit: Visit, job_id: str) -> dict[str, Any]:
    """The order for an earlier job, if one is named and it was about a recipe. Raises a 404 problem."""
    if not job_id:
        return {}
    with visit.desk.begin() as session:
        row = own_job(session, visit.caller, job_id)
    return order_of(row) if "recipe" in row.spec else {}


def takes_orders(
    router: APIRouter,
    path: str,
    read: Callable[[FormData], Filled],
    show: Callable[[Visit, Filled, dict[str, Any] | None, int], Response],
) -> None:
    """The answers of a page to its form, which is there again with a plan beside it and a status."""

    @router.post(path)
    async def change(visit: Author, form: Form) -> Response:
        """Carries out the button that was pressed: starts the job, plans it, or changes the form."""
        visit.caller.require("merges:write")
        wanted, action = read(form), str(form.get("action") or "plan")
        again = partial(show, visit, wanted)
        if action == "submit":
            return await intake.patiently(visit.desk, lambda: _start(visit, wanted, again))
        if action == "plan":
            return await intake.patiently(visit.desk, lambda: again(_plan(visit, wanted), 200))
        wanted.act(action)
        return await run_in_threadpool(again, None, 200)

    @router.post(f"{path}/plan")
    async def plan(visit: Author, form: Form) -> Response:
        """The plan alone, for the page to show beside the form."""
        visit.caller.require("merges:write")
        wanted = read(form)
        return await intake.patiently(visit.desk, lambda: page("_plan.html", plan=_plan(visit, wanted)))


def form_page(
    visit: Visit, template: str, here: str, plan: dict[str, Any] | None, status: int, **values: Any
) -> Response:
    """A form with its plan; to htmx, which has the rest of the page, the form alone."""
    layout = "part.html" if visit.partly else "base.html"
    common = {"layout": layout, "csrf": visit.csrf, "credentials": tokens_of(visit)}
    return page(template, status, here=here, plan=plan, **common, **values)


def tokens_of(visit: Visit) -> list[tuple[str, str]]:
    """Id and name of each Hub token that may be chosen."""
    with visit.desk.begin() as session:
        return [
            (each.id, each.name) for each in credentials.list_credentials(session, visit.caller.tenant_id)
        ]


def _start(visit: Visit, wanted: Wanted, show: Callable[[dict[str, Any], int], Response]) -> Response:
    """Starts the job and goes to its page; what cannot work is shown again with every reason."""
    try:
        accepted = intake.accept(visit.desk, visit.caller, _order(wanted))
    except KNOWN as error:
        return show(_refusal(wanted, error), to_problem(error).status_code)
    return see(f"/jobs/{accepted.job_id}")


def _plan(visit: Visit, wanted: Wanted) -> dict[str, Any] | None:
    """What the page says of the plan; nothing while there is none to make."""
    if wanted.is_blank:
        return None
    try:
        return _seen(intake.preview(visit.desk, visit.caller, _order(wanted)))
    except KNOWN as error:
        later = isinstance(error, PlanTimeout) or (isinstance(error, HubError) and error.retryable)
        return EMPTY | {"pending": f"{error} {LATER}"} if later else _refusal(wanted, error)


def _order(wanted: Wanted) -> intake.Order:
    """The order that a form makes; raises a problem for what cannot be read."""
    body = wanted.body()
    if wanted.wrong:
        raise Problem("validation_failed", "Some fields cannot be read.")
    check_tree(body)
    return intake.order_of(body)


def _seen(planned: Ready) -> dict[str, Any]:
    summary = planned.summary
    classes: Mapping[str, Any] = summary.get("classes") or {}
    return EMPTY | {
        "findings": told_findings(summary["findings"]),
        "estimate": [*trying_of(summary), *estimate_of(summary), *measuring_of(summary)],
        "made": candidates_said(summary),
        "inputs": summary["inputs"],
        "notes": summary.get("translation", ()),
        "stages": [stage_said(name, stage) for name, stage in summary.get("stages", {}).items()],
        "details": yaml.safe_dump(classes, sort_keys=False, allow_unicode=True, width=60) if classes else "",
    }


def _refusal(wanted: Wanted, error: Exception) -> dict[str, Any]:
    """Why an order cannot work, beside its form and at the fields that are meant."""
    problem = to_problem(error)
    findings = []
    for each in problem.errors:
        pointer, said = str(each.get("pointer") or ""), str(each["detail"]).removeprefix("Value error, ")
        name = wanted.input_of(pointer)
        findings.append(
            {"severity": "error", **each, "message": said, "pointer": pointer or None, "input": name or None}
        )
        if name:
            wanted.wrong.setdefault(name, said)
    if not findings:
        findings = [{"code": "field", "message": said, "input": name} for name, said in wanted.wrong.items()]
    said = str(problem.detail) if not findings else kind_of(problem.code).title
    return EMPTY | {"refused": said.rstrip(".") + ".", "findings": told_findings(findings)}
