"""The page on which a bundle's router is ordered: taught by labelled texts, or made from weights alone."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from fastapi import APIRouter, Response

from api.dashboard.ordering import form_page, takes_orders
from api.dashboard.typed import Typed
from api.dashboard.visit import PageRoute, Visit, Visitor
from db.models.job import Job

router = APIRouter(route_class=PageRoute, include_in_schema=False)


class Wanted(Typed):
    """Every text of the form as typed."""

    TEXTS: ClassVar[tuple[str, ...]] = ("bundle", "base", "examples", "layer", "directions")
    INPUTS: ClassVar[Mapping[str, str]] = {f"/{name}": name for name in TEXTS}

    def body(self) -> dict[str, Any]:
        """The order, as plain data; what cannot be read is noted in ``wrong``."""
        told: dict[str, Any] = {name: self.texts[name] for name in ("bundle", "base")}
        told["examples"] = self._examples()
        told |= {name: self.number(name) for name in ("layer", "directions")}
        if not told["bundle"]:
            self.wrong["bundle"] = "Name a bundle."
        asked = {name: value for name, value in told.items() if value not in ("", None)}
        return self.completed({"kind": "router"} | asked | self.wishes())

    def _examples(self) -> list[dict[str, str]] | None:
        """One a line: ``member: text``, or an object as the API has it."""
        made = []
        for number, line in enumerate(self.texts["examples"].splitlines(), 1):
            if not line.strip():
                continue
            example = example_of(line)
            if example is None:
                self.wrong["examples"] = f"Line {number} is no example. Write member: text."
                return None
            made.append(example)
        return made or None


def example_of(line: str) -> dict[str, str] | None:
    """The text of a line and the member it is for; nothing where it is not written so."""
    if line.lstrip().startswith("{"):
        try:
            told = json.loads(line)
        except ValueError:
            return None
        named = isinstance(told, dict) and set(told) == {"text", "member"}
        return told if named and all(isinstance(each, str) for each in told.values()) else None
    member, colon, text = line.partition(":")
    return {"text": text.strip(), "member": member.strip()} if colon and text.strip() else None


def router_view(job: Job) -> dict[str, Any] | None:
    """What the page says of a router that is there; nothing for other results."""
    told = (job.result or {}).get("router")
    if job.kind != "router" or not told:
        return None
    made = "Taught by labelled texts" if told["kind"] == "linear" else "Made from weights alone"
    return {"bundle": job.recipe.get("bundle"), "members": told["members"], "made": made}


@router.get("/jobs/router")
def blank(visit: Visitor, bundle: str = "") -> Response:
    """An empty form, or one for a bundle."""
    visit.caller.require("merges:write")
    return _form(visit, Wanted({"bundle": bundle[:1024]}))


def _form(visit: Visit, wanted: Wanted, plan: dict[str, Any] | None = None, status: int = 200) -> Response:
    return form_page(visit, "router.html", "/jobs/router", plan, status, draft=wanted)


takes_orders(router, "/jobs/router", Wanted.from_form, _form)
