"""What a task of your own may say to lm-evaluation-harness: plain data, checked before anything starts.

The harness renders templates with an engine that can run code, calls functions named in YAML files, and looks
for metrics on the network. So of templates only ``{{field}}`` is let through, nothing can name a function,
and metrics come from its own registry. Loads without torch and without the harness.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from scoring.harness.metrics import BY_OUTPUT, DEFAULTS, KNOWN

PLACE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]{0,63})\s*\}\}")
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MOST_TEXT = 20_000
MOST_YAML = 200_000
Text = Annotated[str, StringConstraints(max_length=MOST_TEXT)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Metric(_Part):
    """One metric, and how ``exact_match`` compares. What a task's file says of direction and aggregation must
    be the metric's own.
    """

    metric: str
    aggregation: str | None = None
    higher_is_better: bool | None = None
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None

    def check(self) -> None:
        """Raises ``ValueError`` where it is said to be another metric than it is."""
        own = KNOWN[self.metric]
        if self.aggregation not in (None, own.aggregation):
            raise ValueError(f"the aggregation of {self.metric} is {own.aggregation}: leave it out")
        if self.higher_is_better not in (None, own.higher_is_better):
            better = "more" if own.higher_is_better else "less"
            raise ValueError(f"of {self.metric} {better} is better: leave higher_is_better out")


class Generation(_Part):
    """How answers are generated: always the likeliest token."""

    until: Annotated[tuple[str, ...], Field(min_length=1, max_length=8)] = ("\n",)
    max_gen_toks: int = Field(64, ge=1, le=2048)
    do_sample: Literal[False] = False


class HarnessConfig(_Part):
    """The part of a task's YAML that says what is asked; its data are the items of the set."""

    output_type: Literal["multiple_choice", "generate_until", "loglikelihood_rolling"]
    doc_to_text: Text = ""
    doc_to_target: Text | int = ""
    doc_to_choice: Text | Annotated[tuple[str, ...], Field(min_length=2, max_length=64)] | None = None
    target_delimiter: Annotated[str, StringConstraints(max_length=100)] = " "
    description: Text = ""
    generation_kwargs: Generation | None = None
    metric_list: Annotated[tuple[Metric, ...], Field(min_length=1, max_length=8)] | None = None

    @field_validator("doc_to_text", "doc_to_target", "description", mode="after")
    @classmethod
    def _only_fields(cls, value: str | int) -> str | int:
        if isinstance(value, str):
            require_plain(value)
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        known = BY_OUTPUT[self.output_type]
        for each in self.metric_list or ():
            if each.metric not in known:
                raise ValueError(
                    f"{each.metric!r} is no metric of {self.output_type}: {', '.join(sorted(known))}"
                )
            each.check()
        if (self.doc_to_choice is not None) != (self.output_type == "multiple_choice"):
            raise ValueError("doc_to_choice belongs to multiple_choice, and to it alone")
        if isinstance(self.doc_to_choice, str) and self.choice_field is None:
            raise ValueError("doc_to_choice must be a list of texts, or name the field that holds one")
        if self.generation_kwargs is not None and self.output_type != "generate_until":
            raise ValueError("generation_kwargs belongs to generate_until alone")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured: what is named, or what the harness measures where nothing is."""
        if self.metric_list is None:
            return DEFAULTS[self.output_type]
        return tuple(each.metric for each in self.metric_list)

    @property
    def choice_field(self) -> str | None:
        """The field of an item that holds its choices, where they are not the same for all."""
        if not isinstance(self.doc_to_choice, str):
            return None
        found = PLACE.fullmatch(self.doc_to_choice)
        name = found[1] if found else self.doc_to_choice
        return name if FIELD.fullmatch(name) else None

    def fields(self) -> set[str]:
        """Every field that an item must have."""
        texts = [each for each in (self.doc_to_text, self.doc_to_target) if isinstance(each, str)]
        named = {name for text in texts for name in PLACE.findall(text)}
        return named | ({self.choice_field} if self.choice_field else set())

    def plain(self) -> dict[str, Any]:
        """As the harness reads it."""
        told: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        if self.choice_field is not None:
            told["doc_to_choice"] = self.choice_field
        return {"metric_list": [{"metric": name} for name in self.metrics], **told}


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which could make a small text a large one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(problem="aliases are not read")
        return super().compose_node(parent, index)


def from_yaml(text: str) -> dict[str, Any]:
    """The fields that the YAML file of a task holds; raises ``ValueError`` for anything but plain data, such
    as ``!function``.
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"has {len(text):,} characters; at most {MOST_YAML:,} are read")
    try:
        found = yaml.load(text, _PlainLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1})"
        said = getattr(error, "problem", None) or "it cannot be parsed"
        raise ValueError(f"is not YAML of plain data{where}: {said}") from None
    if not isinstance(found, dict):
        raise ValueError("is YAML, but no mapping of fields to values")
    return found


def require_plain(template: str) -> None:
    """Raises ``ValueError`` unless a template holds nothing but text and ``{{field}}``."""
    rest = PLACE.sub("", template)
    if any(mark in rest for mark in ("{{", "{%", "{#", "}}")):
        raise ValueError(
            "only text and {{field}} are allowed in a template: no expressions, filters or loops"
        )
    if template.lstrip().startswith("!"):
        raise ValueError("functions cannot be named")


def rendered(template: str, row: Mapping[str, Any]) -> str:
    """A template with the fields of an item in it."""
    return PLACE.sub(lambda found: str(row[found[1]]), template)
