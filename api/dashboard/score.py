"""The page on which models are scored as they are: which, on what, and sending it off."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fastapi import APIRouter, Response

from api.dashboard.draft import SET_KINDS
from api.dashboard.ordering import form_page, takes_orders
from api.dashboard.typed import Typed
from api.dashboard.visit import PageRoute, Visit, Visitor

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


def _form(visit: Visit, wanted: Wanted, plan: dict[str, Any] | None = None, status: int = 200) -> Response:
    return form_page(visit, "score.html", "/jobs/score", plan, status, draft=wanted, set_kinds=SET_KINDS)


takes_orders(router, "/jobs/score", Wanted.from_form, _form)
