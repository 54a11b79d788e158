"""What stands in the form of a new job, and the request it makes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from api.dashboard.forms import (
    Field,
    Mistyped,
    fields_of,
    read_curve,
    shown,
    trimmed,
    values_of,
    whole_number,
)
from api.dashboard.told import beyond, data_at, not_shown, typed_recipe, typed_set, with_rest
from merge.catalog import MethodEntry, catalogue
from merge.errors import MergeError
from merge.mergekit.translate import read_documents
from merge.recipe.document import dump_document, load_document, load_documents
from merge.recipe.presets import PRESETS, listing

FIRST_METHODS = ("linear", "slerp", "task_arithmetic")
MOST_ROWS = 32
IN_RECIPE = ("base", "dtype", "seed", "calibration")
WHOLE = ("combine", "block")
MOST_SAID = 4
PUBLISH = {
    "checked": "Only if the result passes its checks",
    "always": "Always, even if a check fails",
    "never": "Never; keep it here",
}
SET_KINDS = {
    "perplexity": "Perplexity",
    "choice": "Multiple choice",
    "exact_match": "Exact match",
    "classification": "Classification",
    "zero_shot": "Zero-shot classes",
    "similarity": "Similarity",
    "retrieval": "Retrieval",
    "lm_eval": "lm-evaluation-harness",
}
_ROW = re.compile(r"(sources|steps|evaluate)-(\d{1,3})-([a-z0-9_]+)")


@dataclass
class Draft:
    """Every text as typed; nothing is checked before ``recipe`` or ``request`` is asked for."""

    tab: str = "form"
    base: str = ""
    sources: list[dict[str, str]] = field(default_factory=lambda: [{}, {}])
    steps: list[dict[str, str]] = field(default_factory=list)
    evaluate: list[dict[str, str]] = field(default_factory=list)
    dtype: str = ""
    seed: str = ""
    calibration: str = ""
    document: str = ""
    repo: str = ""
    private: bool = True
    overwrite: bool = False
    publish: str = "checked"
    parents: bool = True
    webhook_url: str = ""
    credential: str = ""
    rest: str = ""
    """What has no field of its own, as YAML."""
    stays: str = ""
    """Why the YAML cannot be shown as a form."""
    wrong: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.steps:
            known = catalogue()
            first = next((name for name in FIRST_METHODS if name in known), next(iter(known), ""))
            self.steps = [{"method": first}]

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> "Draft":
        """The draft that a posted form holds."""
        texts = {key: value for key, value in form.items() if isinstance(value, str)}
        draft = cls(
            tab="yaml" if texts.get("tab") == "yaml" else "form",
            sources=_rows(texts, "sources") or [{}, {}],
            steps=[step for row in _rows(texts, "steps") for step in _chain(row)][:MOST_ROWS],
            evaluate=_rows(texts, "evaluate"),
            private="private" in texts,
            overwrite="overwrite" in texts,
            parents="parents" in texts,
        )
        for name in (*IN_RECIPE, "document", "repo", "publish", "webhook_url", "credential", "rest"):
            setattr(draft, name, trimmed(texts.get(name, getattr(draft, name))))
        return draft

    @classmethod
    def with_method(cls, name: str) -> "Draft":
        """An empty draft that begins with method ``name``; a combining one follows one that prepares. A
        preset is written out.
        """
        entry = catalogue().get(name)
        draft = cls()
        if name in PRESETS:
            draft.steps = _chain({"method": name})
        if entry is not None:
            draft.steps = [{"method": name}] if entry.kind in WHOLE else [{"method": name}, *draft.steps]
        return draft

    @classmethod
    def from_order(cls, order: Mapping[str, Any]) -> "Draft":
        """A draft to start from an earlier order: its recipe as YAML, its other wishes in the form, and as
        YAML what has no field.
        """
        output, evaluate = order.get("output", {}), order.get("evaluate", {})
        draft = cls(tab="yaml", document=dump_document(order["recipe"]))
        draft.credential = order.get("hub_credential") or ""
        draft.repo, draft.publish = output.get("repo") or "", output.get("publish", "checked")
        draft.private, draft.overwrite = output.get("private", True), output.get("overwrite", False)
        draft.parents = evaluate.get("parents", True)
        draft.webhook_url = (order.get("webhook") or {}).get("url", "")
        draft.evaluate = [typed_set(each) for each in evaluate.get("sets", ())]
        if draft.wishes().get("evaluate", {}).get("sets", []) != evaluate.get("sets", []):
            draft.evaluate = []
        draft.keep_rest(order, {"recipe": order["recipe"], **draft.wishes()})
        return draft

    def keep_rest(self, order: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Keeps what of an order the fields, which tell this of it, have no place for."""
        rest = beyond(order, told)
        self.rest = dump_document(rest) if rest else ""
        self.wrong.clear()

    def act(self, action: str) -> "Draft":
        """What a button of the form does to it: adds or removes a row, or opens the other tab."""
        verb, _, rest = action.partition(":")
        name, _, position = rest.partition(":")
        rows = {"source": self.sources, "step": self.steps, "evaluate": self.evaluate}.get(name)
        least = 0 if name == "evaluate" else 1
        if verb == "tab":
            self._open(rest)
        elif rows is not None and verb == "add" and len(rows) < MOST_ROWS:
            rows.append({"method": self.steps[-1]["method"]} if name == "step" else {})
        elif rows is not None and verb == "remove" and len(rows) > least:
            rows[:] = [row for place, row in enumerate(rows) if str(place) != position]
        return self

    def step_fields(self, position: int) -> list[Field]:
        """The fields of one step's settings."""
        step = self.steps[position]
        entry = catalogue().get(step.get("method", ""))
        return fields_of(entry.schema, f"steps-{position}-", step) if entry else []

    def entry(self, position: int) -> MethodEntry | None:
        """The method of one step, if there is one of that name."""
        return catalogue().get(self.steps[position].get("method", ""))

    @property
    def is_blank(self) -> bool:
        """Whether no model is named yet."""
        if self.tab == "yaml":
            return not self.document
        return not self.base and not any(each.get("model", "").strip() for each in self.sources)

    def inputs(self) -> set[str]:
        """Names of the inputs that the page shows and that can be marked as wrong."""
        names = {"repo", "publish", "webhook_url", "credential", "rest"}
        rows: list[tuple[str, tuple[str, ...]]] = [
            (f"evaluate-{at}-", ("name", "kind", "where", "limit", "settings"))
            for at in range(len(self.evaluate))
        ]
        if self.tab == "yaml":
            names.add("document")
        else:
            names |= set(IN_RECIPE)
            rows += [(f"sources-{at}-", ("model", "weight", "adapter")) for at in range(len(self.sources))]
            for at in range(len(self.steps)):
                names |= {f"steps-{at}-method", *(each.name for each in self.step_fields(at))}
        return names | {start + column for start, columns in rows for column in columns}

    def kept(self) -> list[tuple[str, str]]:
        """Names and texts of the inputs that the page does not show beside YAML, but has again afterwards."""
        groups = {"sources": self.sources, "steps": self.steps}
        return [(name, getattr(self, name)) for name in IN_RECIPE] + [
            (f"{group}-{at}-{column}", text)
            for group, rows in groups.items()
            for at, row in enumerate(rows)
            for column, text in row.items()
        ]

    def input_of(self, pointer: str) -> str:
        """Name of the input that a JSON pointer means; nothing for what the page does not show."""
        name = input_of(pointer)
        if name in self.inputs():
            return name
        return "rest" if self.rest and not pointer.startswith("/recipe") else ""

    def base_needed_by(self) -> list[str]:
        """Titles of the chosen methods that need a base."""
        entries = [self.entry(position) for position in range(len(self.steps))]
        return [each.title for each in entries if each and each.needs.get("base") is True]

    def measured_by(self) -> list[str]:
        """Titles of the chosen methods that need to see models run on texts."""
        entries = [self.entry(position) for position in range(len(self.steps))]
        return [each.title for each in entries if each and each.statistics]

    def recipe(self) -> dict[str, Any]:
        """The recipe that the form describes, as plain data; what cannot be read is noted in ``wrong``."""
        document: dict[str, Any] = {}
        self.sources.sort(key=lambda row: not any(row.values()))
        if not any(self.sources[0].values() if self.sources else ()):
            self.wrong["sources-0-model"] = "Name at least one model."
        if self.base:
            document["base"] = self.base
        document["sources"] = [
            self._source(position, row) for position, row in enumerate(self.sources) if any(row.values())
        ]
        document["steps"] = [self._step(position, row) for position, row in enumerate(self.steps)]
        if self.dtype:
            document["dtype"] = {"output": self.dtype}
        if self.seed:
            document["seed"] = self.whole("seed", self.seed)
        if self.measured_by() and self.calibration not in ("", "default"):
            document["calibration"] = {"data": data_at(self.calibration)}
        return document

    def body(self) -> dict[str, Any]:
        """The whole order, as plain data; raises ``MergeError`` where the recipe is no YAML."""
        recipe = load_documents(self.document, "yaml") if self.tab == "yaml" else self.recipe()
        return self.completed({"recipe": recipe, **self.wishes()})

    def completed(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """An order with what has no field of its own; what cannot be read is noted in ``wrong``."""
        try:
            return with_rest(order, self.rest)
        except Mistyped as error:
            self.wrong["rest"] = str(error)
            return dict(order)

    def wishes(self) -> dict[str, Any]:
        """Everything of the request besides the recipe, in the form of the API's body."""
        output = {"private": self.private, "publish": self.publish, "overwrite": self.overwrite}
        body: dict[str, Any] = {"output": ({"repo": self.repo} if self.repo else {}) | output}
        self.evaluate.sort(key=lambda row: not _is_set(row))
        sets = [self._set(position, row) for position, row in enumerate(self.evaluate) if _is_set(row)]
        if sets:
            body["evaluate"] = {"sets": sets, "parents": self.parents}
        if self.webhook_url:
            body["webhook"] = {"url": self.webhook_url}
        if self.credential:
            body["hub_credential"] = self.credential
        return body

    def _open(self, tab: str) -> None:
        if tab == "yaml":
            self.tab, self.document = "yaml", self.document or self._as_yaml()
        elif not self.document or self.document == self._as_yaml() or self._carried_over():
            self.tab = "form"

    def _as_yaml(self) -> str:
        """The recipe that the form describes, as far as it can be read."""
        text = dump_document(self.recipe()).strip()
        self.wrong.clear()
        return text

    def _carried_over(self) -> bool:
        """Whether the form can show the YAML, and does now; else ``stays`` says why not."""
        try:
            recipe = read_documents(load_documents(self.document, "yaml")).recipe
            form = Draft(**typed_recipe(recipe))
            lost = not_shown(recipe, read_documents([form.recipe()]).recipe) or [*form.wrong.values()]
        except MergeError as error:
            self.stays = f"This is no recipe yet that a form could show: {error}"
            return False
        if lost:
            more = f" and {len(lost) - MOST_SAID} more" if len(lost) > MOST_SAID else ""
            self.stays = f"The form has no fields for {', '.join(lost[:MOST_SAID])}{more}; go on here."
            return False
        for name in ("sources", "steps", *IN_RECIPE):
            setattr(self, name, getattr(form, name))
        return True

    def _source(self, position: int, row: Mapping[str, str]) -> dict[str, Any]:
        source: dict[str, Any] = {"model": row.get("model", "").strip()}
        name = f"sources-{position}"
        if not source["model"]:
            self.wrong[f"{name}-model"] = "Name a model, or remove this source."
        if weight := row.get("weight", "").strip():
            try:
                source["weight"] = read_curve(weight)
            except Mistyped as error:
                self.wrong[f"{name}-weight"] = str(error)
        if adapter := row.get("adapter", "").strip():
            source["adapter"] = adapter
        return source

    def _step(self, position: int, row: Mapping[str, str]) -> dict[str, Any]:
        entry = catalogue().get(row.get("method", ""))
        if entry is None:
            self.wrong[f"steps-{position}-method"] = "Choose a method."
            return {"method": row.get("method", "")}
        values, wrong = values_of(entry.schema, row)
        self.wrong |= {f"steps-{position}-{name}": sentence for name, sentence in wrong.items()}
        return {"method": entry.name, **values}

    def _set(self, position: int, row: Mapping[str, str]) -> dict[str, Any]:
        data = data_at(row.get("where", "").strip())
        made: dict[str, Any] = {
            "name": row.get("name", "").strip() or f"set{position + 1}",
            "kind": row.get("kind") or "perplexity",
            "data": data,
        }
        if limit := row.get("limit", "").strip():
            made["limit"] = self.whole(f"evaluate-{position}-limit", limit)
        if settings := row.get("settings", "").strip():
            made["settings"] = self._settings(f"evaluate-{position}-settings", settings)
        if made["kind"] == "lm_eval" and "config" not in made.get("settings", {}):
            del made["data"]
        return made

    def _settings(self, name: str, text: str) -> dict[str, Any]:
        try:
            return load_document("{" + text + "}", "yaml")
        except MergeError:
            self.wrong[name] = "Write name: value, name: value."
            return {}

    def whole(self, name: str, text: str) -> int:
        """The whole number that was typed into an input; 0 where that cannot be read."""
        try:
            return whole_number(text)
        except Mistyped as error:
            self.wrong[name] = str(error)
            return 0


def _is_set(row: Mapping[str, str]) -> bool:
    """Whether a row is more than an empty one: it says where its data are, or which built-in task it is."""
    told = row.get("settings", "") if row.get("kind") == "lm_eval" else ""
    return bool((row.get("where", "") + told).strip())


def input_of(pointer: str) -> str:
    """Name of the form's input that a JSON pointer into the recipe or the request means."""
    name = pointer.removeprefix("/recipe").strip("/").replace("/settings/", "/").replace("/", "-")
    aliases = {
        "output-repo": "repo",
        "dtype-output": "dtype",
        "webhook-url": "webhook_url",
        "hub_credential": "credential",
    }
    name = re.sub(r"^evaluate-sets-(\d+)-data.*$", r"evaluate-\1-where", name)
    name = re.sub(r"^calibration-.*$", "calibration", name)
    return aliases.get(name, name.replace("evaluate-sets-", "evaluate-"))


def _rows(texts: Mapping[str, str], group: str) -> list[dict[str, str]]:
    """The numbered rows of one group, in order, without gaps."""
    rows: dict[int, dict[str, str]] = {}
    for name, position, column, value in _numbered(texts):
        if name == group:
            rows.setdefault(position, {})[column] = value
    return [rows[position] for position in sorted(rows)][:MOST_ROWS]


def _chain(row: dict[str, str]) -> list[dict[str, str]]:
    """The row of one step; in place of a preset, the rows of its chain with what it sets."""
    preset = PRESETS.get(row.get("method", ""))
    if preset is None:
        return [row]
    return [{name: shown(value) for name, value in step.items()} for step in preset.steps({})]


def _numbered(texts: Mapping[str, str]) -> Iterator[tuple[str, int, str, str]]:
    for key, value in texts.items():
        if found := _ROW.fullmatch(key):
            yield found[1], int(found[2]), found[3], value


def methods_by_kind() -> dict[str, list[MethodEntry]]:
    """Every method, grouped by what it does in a chain, in the order of a chain; then the presets."""
    order = ["prepare", "combine", "block", "adjust", "preset"]
    entries = sorted(
        listing().values(),
        key=lambda each: (order.index(each.kind) if each.kind in order else 9, each.name),
    )
    groups: dict[str, list[MethodEntry]] = {}
    for each in entries:
        groups.setdefault(each.kind, []).append(each)
    return groups
