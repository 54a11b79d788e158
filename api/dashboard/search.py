"""The page on which a search is ordered: a recipe, what of it may vary, how it is tried, and on what."""

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fastapi import APIRouter, Response

from api.dashboard.draft import SET_KINDS, Draft
from api.dashboard.forms import shown
from api.dashboard.ordering import EarlierAsked, earlier_order, form_page, takes_orders
from api.dashboard.render import first_sentence
from api.dashboard.told import inline
from api.dashboard.typed import Typed
from api.dashboard.visit import PageRoute, Visit, Visitor
from merge.errors import MergeError
from merge.recipe.document import dump_document, load_document
from merge.recipe.recipe import Recipe
from search.settings import BY_METHOD

SCALARS = ("evaluations", "seconds", "workers", "seed")
LISTS = ("preference", "reference")
FIRST = {"method": "line", "evaluations": "50"}
_OBJECTIVE = re.compile(
    r"(?P<set>[^\s@]\S*)(\s+(?P<metric>(?!(?:max|min)(?:\s|$))[^\s@]\S*))?"
    r"(\s+(?P<goal>max|min))?(\s+@(?P<member>\S+))?"
)

router = APIRouter(route_class=PageRoute, include_in_schema=False)


class Wanted(Typed):
    """Every text of the form as typed."""

    TEXTS: ClassVar[tuple[str, ...]] = (
        *("recipe", "space", "method", "settings", "objectives", "halving"),
        *SCALARS,
        *LISTS,
    )
    INPUTS: ClassVar[Mapping[str, str]] = {
        "/search/budget/evaluations": "evaluations",
        "/search/budget/seconds": "seconds",
        **{f"/search/{name}": name for name in ("space", "method", "settings", "objectives", "halving")},
        **{f"/search/{name}": name for name in (*LISTS, "seed")},
        "/workers": "workers",
        "/recipe": "recipe",
        **{f"/{name}": "recipe" for name in Recipe.model_fields},
    }

    def body(self) -> dict[str, Any]:
        """The order, as plain data; what cannot be read is noted in ``wrong``."""
        wishes = self.wishes("evaluate")
        sets = wishes.pop("evaluate", {}).get("sets", [])
        budget = {"evaluations": self.number("evaluations"), "seconds": self.number("seconds")}
        rest = {"seed": self.number("seed"), **{name: self._numbers(name) for name in LISTS}}
        search: dict[str, Any] = {
            "method": self.texts["method"],
            "settings": self._mapping("settings", "Write name: value, name: value.", inline=True),
            "space": self._mapping("space", "Write one dimension a line: name: {at: …, low: …, high: …}."),
            "budget": {name: value for name, value in budget.items() if value is not None},
            **({"objectives": objectives} if (objectives := self._objectives()) else {}),
            **({"halving": {}} if self.texts["halving"] else {}),
            **{name: value for name, value in rest.items() if value is not None},
        }
        order: dict[str, Any] = {
            "kind": "search",
            "recipe": self._recipe(),
            "search": search,
            "evaluate": {"sets": sets} if sets else {},
        }
        workers = self.number("workers")
        order = self.completed(order | wishes | ({} if workers is None else {"workers": workers}))
        told = order["evaluate"].setdefault("sets", [])
        names = (
            [each.get("name") for each in told if isinstance(each, dict)] if isinstance(told, list) else []
        )
        order["search"].setdefault("objectives", [{"set": name} for name in names[:1]])
        return order

    @classmethod
    def from_order(cls, order: Mapping[str, Any]) -> "Wanted":
        """What would be typed for an earlier order, and as YAML what has no field."""
        search, budget = order["search"], order["search"].get("budget", {})
        seconds = budget.get("seconds") or 0.5
        texts = {
            "recipe": dump_document(order["recipe"]),
            "space": dump_document(search["space"]),
            "method": search["method"],
            "settings": inline(search.get("settings", {})),
            "objectives": "\n".join(map(_objective_said, search["objectives"])),
            "halving": "on" if search.get("halving") is not None else "",
            "evaluations": shown(budget.get("evaluations")),
            "seconds": str(int(seconds)) if seconds == int(seconds) else "",
            "workers": shown(order.get("workers")),
            **{name: shown(search.get(name)) for name in (*LISTS, "seed")},
        }
        wanted = cls(texts, Draft.from_order(order))
        if wanted._objectives() != search["objectives"]:
            texts["objectives"] = ""
        wanted.sets.rest = ""
        wanted.sets.keep_rest(order, wanted.body())
        return wanted

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
        """One a line: the name of a set, a metric if it is not the first of its kind, ``max`` or ``min`` if
        that is not known of the metric, and ``@`` with the member of a bundle.
        """
        found = []
        for line in filter(None, map(str.strip, self.texts["objectives"].splitlines())):
            read = _OBJECTIVE.fullmatch(line)
            if read is None:
                self.wrong["objectives"] = f"{line[:60]!r} is no objective. Write: set metric max @member."
            else:
                found.append({name: said for name, said in read.groupdict().items() if said})
        return found

    def _numbers(self, name: str) -> list[float] | None:
        """One an objective, with commas or spaces in between."""
        found = []
        for text in re.split(r"[,\s]+", self.texts[name].strip("[] ,")):
            try:
                found += [float(text)] if text else []
            except ValueError:
                self.wrong[name] = f"{text[:40]!r} is not a number. Write one an objective: 2, 1."
                return None
        if not all(map(math.isfinite, found)):
            self.wrong[name] = "Each must be a finite number."
        return found or None


def _objective_said(objective: Mapping[str, Any]) -> str:
    member = f"@{objective['member']}" if objective.get("member") else None
    said = [*(objective.get(name) for name in ("set", "metric", "goal")), member]
    return " ".join(filter(None, said))


@router.get("/jobs/search")
def blank(visit: Visitor, from_: EarlierAsked = "") -> Response:
    """An empty form, or one filled in from an earlier search."""
    visit.caller.require("merges:write")
    earlier = earlier_order(visit, from_)
    begun = Wanted.from_order(earlier) if earlier.get("kind") == "search" else Wanted(dict(FIRST))
    return _form(visit, begun)


def _form(visit: Visit, wanted: Wanted, plan: dict[str, Any] | None = None, status: int = 200) -> Response:
    return form_page(
        visit,
        "search.html",
        "/jobs/search",
        plan,
        status,
        draft=wanted,
        methods={
            name: f"{name}: {first_sentence(each.__doc__ or '').rstrip('.')}"
            for name, each in BY_METHOD.items()
        },
        set_kinds=SET_KINDS,
    )


takes_orders(router, "/jobs/search", Wanted.from_form, _form)
