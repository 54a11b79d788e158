"""The page on which a bundle's router is ordered: taught by labelled texts, or made from weights alone."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Response

from api.dashboard.ordering import placed, said_of, tokens_of, wrong_in
from api.dashboard.render import page
from api.dashboard.visit import Author, Form, PageRoute, Visit, Visitor
from api.errors import Problem
from db.models.job import Job

TEXTS = ("bundle", "base", "examples", "layer", "directions", "credential", "webhook_url")
INPUTS = {
    "/bundle": "bundle",
    "/base": "base",
    "/examples": "examples",
    "/layer": "layer",
    "/directions": "directions",
    "/hub_credential": "credential",
    "/webhook": "webhook_url",
}
"""Which input is meant by what begins with a pointer."""

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@dataclass
class Wanted:
    """Every text of the form as typed, and a sentence for each input that cannot be read, or cannot work."""

    texts: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> "Wanted":
        """What a posted form holds."""
        return cls({name: str(form.get(name) or "").strip() for name in TEXTS})

    def body(self) -> dict[str, Any]:
        """The order, as plain data; what cannot be read is noted in ``wrong``."""
        told: dict[str, Any] = {name: self.texts[name] for name in ("bundle", "base")}
        told["examples"] = self._examples()
        told |= {name: self._number(name) for name in ("layer", "directions")}
        told["hub_credential"] = self.texts["credential"]
        told["webhook"] = {"url": self.texts["webhook_url"]} if self.texts["webhook_url"] else None
        if not told["bundle"]:
            self.wrong["bundle"] = "Name a bundle."
        return {"kind": "router"} | {name: value for name, value in told.items() if value not in ("", None)}

    def refuse(self, errors: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Notes at its input what is wrong with each; gives those that have none."""
        rest = []
        for each in errors:
            if name := input_of(str(each.get("pointer") or "")):
                self.wrong.setdefault(name, str(each["detail"]).removeprefix("Value error, "))
            else:
                rest.append(each)
        return rest

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

    def _number(self, name: str) -> int | None:
        text = self.texts[name]
        if text and not (text.isascii() and text.isdigit()):
            self.wrong[name] = f"{text!r} is not a whole number."
            return None
        return int(text) if text else None


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


def input_of(pointer: str) -> str:
    """Name of the input that a JSON pointer into the order means; nothing for what has none."""
    return next((name for start, name in INPUTS.items() if pointer.startswith(start)), "")


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


@router.post("/jobs/router")
async def send(visit: Author, form: Form) -> Response:
    """Starts the job; what cannot work is shown at its field."""
    visit.caller.require("merges:write")
    wanted = Wanted.from_form(form)
    return await anyio.to_thread.run_sync(_start, visit, wanted, limiter=visit.desk.planning_threads)


def _start(visit: Visit, wanted: Wanted) -> Response:
    body = wanted.body()
    if wanted.wrong:
        return _form(visit, wanted, status=422)

    def refused(problem: Problem) -> Response:
        rest = wanted.refuse(problem.errors)
        return _form(visit, wanted, wrong_in(rest), said_of(problem), problem.status_code)

    return placed(visit, body, refused)


def _form(
    visit: Visit,
    wanted: Wanted,
    findings: list[dict[str, Any]] | None = None,
    refused: str = "",
    status: int = 200,
) -> Response:
    return page(
        "router.html",
        status,
        here="/jobs/router",
        csrf=visit.csrf,
        draft=wanted,
        texts=wanted.texts,
        findings=findings or [],
        refused=refused,
        credentials=tokens_of(visit),
    )
