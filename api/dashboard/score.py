"""The page on which models are scored as they are: which, on what, and sending it off."""

import re
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Response

from api.dashboard.draft import MOST_ROWS, SET_KINDS, Draft
from api.dashboard.ordering import placed, said_of, tokens_of, wrong_in
from api.dashboard.render import page
from api.dashboard.visit import Author, Form, PageRoute, Visit, Visitor
from api.errors import Problem

_NAMED = re.compile(r"(?P<id>[a-z0-9][a-z0-9_-]{0,63})\s*=\s*(?P<model>\S+)")

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/jobs/score")
def blank(visit: Visitor) -> Response:
    """An empty form."""
    visit.caller.require("merges:write")
    return _form(visit, "", Draft(evaluate=[{}]))


@router.post("/jobs/score")
async def send(visit: Author, form: Form) -> Response:
    """Starts the job, or adds a row for another set; what cannot work is shown with every reason."""
    visit.caller.require("merges:write")
    models, draft = str(form.get("models") or ""), Draft.from_form(form)
    if form.get("action") == "add":
        draft.evaluate = [*draft.evaluate, {}][:MOST_ROWS]
        return await anyio.to_thread.run_sync(_form, visit, models, draft)
    return await anyio.to_thread.run_sync(_start, visit, models, draft, limiter=visit.desk.planning_threads)


def models_of(text: str) -> list[Any]:
    """The models as they are typed, one a line, some with an id: ``tuned = org/tuned@v2``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [named.groupdict() if (named := _NAMED.fullmatch(line)) else line for line in lines]


def _start(visit: Visit, models: str, draft: Draft) -> Response:
    wishes = draft.wishes()
    body = {"kind": "score", "models": models_of(models), "evaluate": {"sets": []}}
    body |= {name: wishes[name] for name in ("evaluate", "webhook", "hub_credential") if name in wishes}

    def refused(problem: Problem) -> Response:
        return _form(visit, models, draft, wrong_in(problem.errors), said_of(problem), problem.status_code)

    if draft.wrong:
        return refused(Problem("validation_failed", next(iter(draft.wrong.values()))))
    return placed(visit, body, refused)


def _form(
    visit: Visit,
    models: str,
    draft: Draft,
    findings: list[dict[str, Any]] | None = None,
    refused: str = "",
    status: int = 200,
) -> Response:
    return page(
        "score.html",
        status,
        here="/jobs/score",
        csrf=visit.csrf,
        models=models,
        draft=draft,
        rows=draft.evaluate or [{}],
        findings=findings or [],
        refused=refused,
        set_kinds=SET_KINDS,
        credentials=tokens_of(visit),
    )
