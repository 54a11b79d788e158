"""Several documents of mergekit in one file (mergekit-multi): each with a name becomes a stage."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from merge.errors import Finding, FindingsError, MergekitUnsupported
from merge.mergekit.values import refuse
from merge.recipe.document import pointer_of
from merge.recipe.recipe import Recipe, recipe_from
from merge.recipe.stages import ADAPTER, MOST_STAGES, STAGE, check_stages, named_models

Translate = Callable[[Mapping[str, Any]], tuple[Recipe, tuple[str, ...]]]


@dataclass(frozen=True)
class _Document:
    place: int
    name: str | None
    content: Mapping[str, Any]

    @property
    def label(self) -> str:
        called = f" ({self.name})" if self.name is not None else ""
        return f"Document {self.place + 1}{called}"


def translate_documents(
    documents: Sequence[Mapping[str, Any]], translate: Translate
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe that these documents mean, and notes; ``translate`` does one of them.

    The result is what the document without a name makes, else the last one. Raises ``MergekitUnsupported``
    with a pointer that begins with the place of the document, and a message that begins with its name.
    """
    read = [_read(place, content) for place, content in enumerate(documents)]
    last = _last(read)
    stages = _stage_names([document for document in read if document is not last])
    made: dict[str, Recipe] = {}
    notes: list[str] = []
    for document in read:
        recipe, told = _translated(document, translate, stages)
        notes += (f"{document.label}: {note}" for note in told)
        made["" if document is last else stages[str(document.name)]] = recipe
    recipe = made.pop("").model_copy(update={"stages": made})
    by_stage = {stages[str(document.name)]: document for document in read if document is not last}
    for finding in check_stages(recipe):
        document = by_stage[str(finding.pointer).split("/")[2]]
        unused = "no other document uses it, so it would be merged for nothing."
        _refuse(document, unused if finding.code == "stage_unused" else finding.message, "name")
    return recipe_from(recipe.model_dump(mode="json")), tuple(notes)


def _read(place: int, content: Mapping[str, Any]) -> _Document:
    name = content.get("name")
    plain = {key: value for key, value in content.items() if key != "name"}
    document = _Document(place, None if name is None else str(name), plain)
    if name is not None and (not isinstance(name, str) or not name.strip()):
        _refuse(document, "name must be text.", "name")
    return document


def _last(documents: Sequence[_Document]) -> _Document:
    unnamed = [document for document in documents if document.name is None]
    if len(unnamed) > 1:
        _refuse(unnamed[1], "only one document, the last merge, may be without a name.", "name")
    seen: set[str | None] = set()
    for document in documents:
        if document.name in seen:
            _refuse(document, "another document has that name.", "name")
        seen.add(document.name)
    if len(documents) > MOST_STAGES + 1:
        _refuse(documents[MOST_STAGES + 1], f"at most {MOST_STAGES + 1} documents are taken together.")
    return unnamed[0] if unnamed else documents[-1]


def _stage_names(documents: Sequence[_Document]) -> dict[str, str]:
    """A name that a stage may have for each document's."""
    found: dict[str, str] = {}
    for document in documents:
        name = str(document.name)
        plain = re.sub(r"[^a-z0-9_-]", "-", name.lower()).lstrip("-")[:28] or "stage"
        taken = [other for other in found.values() if re.fullmatch(rf"{re.escape(plain)}(-\d+)?", other)]
        found[name] = f"{plain}-{len(taken) + 1}" if taken else plain
    return found


def _translated(
    document: _Document, translate: Translate, stages: Mapping[str, str]
) -> tuple[Recipe, tuple[str, ...]]:
    try:
        recipe, notes = translate(document.content)
    except MergekitUnsupported as error:
        raise MergekitUnsupported(_placed(document, error.findings)) from None
    except FindingsError as error:
        told = [replace(each, message=f"{document.label}: {each.message}") for each in error.findings]
        stage = stages.get(document.name or "")
        at = "" if stage is None else pointer_of("stages", stage)
        raise type(error)(
            tuple(replace(each, pointer=f"{at}{each.pointer or ''}") for each in told)
        ) from None
    names = {}
    for each in named_models(recipe):
        stage = stages.get(each.name)
        if stage is not None and each.is_adapter:
            _refuse(document, f"{each.name} is a merge, and cannot be taken for a LoRA.")
        if stage is not None:
            names[each.role] = f"{STAGE}{stage}"
            if each.role + ADAPTER in {other.role for other in named_models(recipe)}:
                _refuse(document, f"a LoRA cannot be put on {each.name}: put it on one of its models.")
    return recipe.renamed(names), notes


def _placed(document: _Document, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    at = pointer_of(document.place)
    return tuple(
        replace(each, message=f"{document.label}: {each.message}", pointer=at + (each.pointer or ""))
        for each in findings
    )


def _refuse(document: _Document, message: str, *at: str) -> NoReturn:
    refuse(document.place, *at, f"{document.label}: {message}")
