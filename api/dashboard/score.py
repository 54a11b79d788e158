"""The page on which models are scored as they are: which, on what, and sending it off."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fastapi import APIRouter, Response

from api.dashboard.draft import SET_KINDS
from api.dashboard.ordering import carry_out, form_page, plan_alone
from api.dashboard.typed import Typed
from api.dashboard.visit import Author, Form, PageRoute, Visit, Visitor

_NAMED = re.compile(r"(?P<id>[a-z0-9][a-z0-9_-]{0,63})\s*=\s*(?P<model>\S+)")

router = APIRouter(route_class=PageRoute, include_in_schema=False)


class Wanted(Typed):
    """Every text of the form as typed."""

    TEXTS: ClassVar[tuple[str, ...]] = ("models",)
    INPUTS: ClassVar[Mapping[str, str]] = {"/models": "models"}

    def body(self) -> dict[str, Any]:
        """The order, as plain data; what cannot be read is noted in ``wrong``."""
        order = {"kind": "score", "models": models_of(self.texts["models"]), "evaluate": {"sets": []}}
        return self.completed(order | self.wishes("evaluate"))


def models_of(text: str) -> list[Any]:
    """The models as they are typed, one a line, some with an id: ``tuned = org/tuned@v2``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [named.groupdict() if (named := _NAMED.fullmatch(line)) else line for line in lines]


@router.get("/jobs/score")
def blank(visit: Visitor) -> Response:
    """An empty form."""
    visit.caller.require("merges:write")
    return _form(visit, Wanted())


@router.post("/jobs/score")
async def change(visit: Author, form: Form) -> Response:
    """Carries out the button that was pressed: starts the job, plans it, adds or removes a set."""
    visit.caller.require("merges:write")
    wanted = Wanted.from_form(form)
    action = str(form.get("action") or "plan")
    return await carry_out(visit, wanted, action, lambda plan, status: _form(visit, wanted, plan, status))


@router.post("/jobs/score/plan")
async def plan(visit: Author, form: Form) -> Response:
    """The plan alone, for the page to show beside the form."""
    visit.caller.require("merges:write")
    return await plan_alone(visit, Wanted.from_form(form))


def _form(visit: Visit, wanted: Wanted, plan: dict[str, Any] | None = None, status: int = 200) -> Response:
    return form_page(visit, "score.html", "/jobs/score", plan, status, draft=wanted, set_kinds=SET_KINDS)
