"""The page on which a search is ordered: a recipe, what of it may vary, how it is tried, and on what."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Response

from api.dashboard.draft import MOST_ROWS, SET_KINDS, Draft
from api.dashboard.ordering import placed, said_of, tokens_of, wrong_in
from api.dashboard.render import page
from api.dashboard.visit import Author, Form, PageRoute, Visit, Visitor
from api.errors import Problem
from merge.document import load_document
from merge.errors import MergeError
from search.settings import BY_METHOD

SCALARS = ("evaluations", "seconds", "workers", "seed")
LISTS = ("preference", "reference")
TEXTS = ("recipe", "space", "method", "settings", "objectives", *SCALARS, *LISTS)
MOST_DIGITS = 18
FIELDS = {
    "/search/space": "space",
    "/search/method": "method",
    "/search/settings": "settings",
    "/search/objectives": "objectives",
    "/search/budget/evaluations": "evaluations",
    "/search/budget/seconds": "seconds",
    "/search/halving": "halving",
    "/search/preference": "preference",
    "/search/reference": "reference",
    "/search/seed": "seed",
    "/workers": "workers",
    "/hub_credential": "credential",
    "/webhook": "webhook_url",
}
"""Which input is meant by what begins with a pointer."""
IN_RECIPE = ("/recipe", "/base", "/sources", "/steps", "/overrides", "/dtype")
_OBJECTIVE = re.compile(r"(?P<set>[^\s@]\S*)(\s+(?P<metric>[^\s@]\S*))?(\s+@(?P<member>\S+))?")
_SET = re.compile(r"/evaluate/sets/(\d+)/(name|kind|data|limit|settings)")

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@dataclass
class Wanted:
    """Every text of the form as typed; ``sets`` has the rows that every form with sets has."""

    texts: dict[str, str] = field(default_factory=lambda: {"method": "line", "evaluations": "50"})
    halving: bool = False
    sets: Draft = field(default_factory=lambda: Draft(evaluate=[{}]))

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> "Wanted":
        """What a posted form holds."""
        texts = {name: str(form.get(name) or "").strip() for name in TEXTS}
        return cls(texts, "halving" in form, Draft.from_form(form))

    @property
    def wrong(self) -> dict[str, str]:
        """A sentence for each input that cannot be read, or cannot work."""
        return self.sets.wrong

    def body(self) -> dict[str, Any]:
        """The order, as plain data; what cannot be read is noted in ``wrong``."""
        wishes = self.sets.wishes()
        sets = wishes.get("evaluate", {}).get("sets", [])
        budget = {"evaluations": self._number("evaluations"), "seconds": self._number("seconds")}
        rest = {"seed": self._number("seed"), **{name: self._numbers(name) for name in LISTS}}
        search: dict[str, Any] = {
            "method": self.texts["method"],
            "settings": self._mapping("settings", "Write name: value, name: value.", inline=True),
            "space": self._mapping("space", "Write one dimension a line: name: {at: …, low: …, high: …}."),
            "objectives": self._objectives() or [{"set": each["name"]} for each in sets[:1]],
            "budget": {name: value for name, value in budget.items() if value is not None},
            **({"halving": {}} if self.halving else {}),
            **{name: value for name, value in rest.items() if value is not None},
        }
        order: dict[str, Any] = {
            "kind": "search",
            "recipe": self._recipe(),
            "search": search,
            "evaluate": {"sets": sets},
        }
        workers = self._number("workers")
        if workers is not None:
            order["workers"] = workers
        return order | {name: wishes[name] for name in ("webhook", "hub_credential") if name in wishes}

    def refuse(self, errors: Iterable[Mapping[str, Any]]) -> None:
        """Notes at its input what is wrong with each."""
        for each in errors:
            name = input_of(str(each.get("pointer") or ""))
            if name:
                self.wrong.setdefault(name, str(each["detail"]).removeprefix("Value error, "))

    def _recipe(self) -> dict[str, Any]:
        try:
            return load_document(self.texts["recipe"], "yaml")
        except MergeError as error:
            said = "Write a recipe." if not self.texts["recipe"] else f"This is no recipe: {error}"
            self.wrong["recipe"] = said
            return {}

    def _mapping(self, name: str, said: str, *, inline: bool = False) -> dict[str, Any]:
        text = self.texts[name]
        try:
            return load_document(f"{{{text}}}" if inline or not text else text, "yaml")
        except MergeError:
            self.wrong[name] = said
            return {}

    def _objectives(self) -> list[dict[str, str]]:
        """One a line: the name of a set, a metric if it is not the first of its kind, and ``@`` with the
        member of a bundle.
        """
        found = []
        for line in filter(None, map(str.strip, self.texts["objectives"].splitlines())):
            read = _OBJECTIVE.fullmatch(line)
            if read is None:
                self.wrong["objectives"] = f"{line[:60]!r} is no objective. Write: set metric @member."
            else:
                found.append({name: said for name, said in read.groupdict().items() if said})
        return found

    def _number(self, name: str) -> int | None:
        text = self.texts[name]
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > MOST_DIGITS:
            self.wrong[name] = f"{text[:40]!r} is not a whole number."
            return None
        return int(text)

    def _numbers(self, name: str) -> list[float] | None:
        """One an objective, with commas or spaces in between."""
        found = []
        for text in re.split(r"[,\s]+", self.texts[name].strip("[] ,")):
            try:
                found += [float(text)] if text else []
            except ValueError:
                self.wrong[name] = f"{text[:40]!r} is not a number. Write one an objective: 2, 1."
                return None
        return found or None


def input_of(pointer: str) -> str:
    """Name of the input that a JSON pointer into the order means; nothing for what has none."""
    if named := _SET.match(pointer):
        return f"evaluate-{named[1]}-{'where' if named[2] == 'data' else named[2]}"
    if pointer.startswith("/evaluate/sets"):
        return "evaluate-0-where"
    if pointer.startswith(IN_RECIPE):
        return "recipe"
    return next((name for start, name in FIELDS.items() if pointer.startswith(start)), "")


@router.get("/jobs/search")
def blank(visit: Visitor) -> Response:
    """An empty form."""
    visit.caller.require("merges:write")
    return _form(visit, Wanted())


@router.post("/jobs/search")
async def send(visit: Author, form: Form) -> Response:
    """Starts the search, or adds a row for another set; what cannot work is shown at its field."""
    visit.caller.require("merges:write")
    wanted = Wanted.from_form(form)
    if form.get("action") == "add":
        wanted.sets.evaluate = [*wanted.sets.evaluate, {}][:MOST_ROWS]
        return await anyio.to_thread.run_sync(_form, visit, wanted)
    return await anyio.to_thread.run_sync(_start, visit, wanted, limiter=visit.desk.planning_threads)


def _start(visit: Visit, wanted: Wanted) -> Response:
    body = wanted.body()
    if wanted.wrong:
        return _form(visit, wanted, status=422)

    def refused(problem: Problem) -> Response:
        wanted.refuse(problem.errors)
        rest = [each for each in problem.errors if not input_of(str(each.get("pointer") or ""))]
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
        "search.html",
        status,
        here="/jobs/search",
        csrf=visit.csrf,
        wanted=wanted,
        texts=wanted.texts,
        draft=wanted.sets,
        rows=wanted.sets.evaluate or [{}],
        methods={name: _first_sentence(each.__doc__ or "") for name, each in BY_METHOD.items()},
        findings=findings or [],
        refused=refused,
        set_kinds={name: said for name, said in SET_KINDS.items() if name != "lm_eval"},
        credentials=tokens_of(visit),
    )


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
