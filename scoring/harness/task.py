"""A set for lm-evaluation-harness, read and checked item by item. Loads without torch and the harness."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from scoring.errors import SetInvalid
from scoring.harness.config import HarnessConfig, rendered
from scoring.lines import Line, Lines
from scoring.settings import LmEvalSettings

HARNESS = "0.4.13"
"""The release whose numbers these are; the extra ``eval`` installs it."""
READING = 2
"""Goes up whenever something else is read of the harness's answer."""
PLAIN = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class HarnessTask:
    """A built-in task (no rows), or rows for a configuration of one's own."""

    name: str
    rows: tuple[Mapping[str, Any], ...]
    limit: int | float | None = None
    """Items at most, or a share of them below 1."""
    kind: Literal["lm_eval"] = "lm_eval"
    settings: LmEvalSettings = field(default_factory=LmEvalSettings)
    version: str = f"{HARNESS}/{READING}"

    @property
    def config(self) -> HarnessConfig | None:
        """The configuration of one's own, checked."""
        return None if self.settings.config is None else HarnessConfig.model_validate(self.settings.config)


def read(name: str, lines: Lines, settings: LmEvalSettings) -> HarnessTask:
    """Reads the items. Raises ``SetInvalid`` with the line and field that the harness would stumble over."""
    task = HarnessTask(name, (), lines.limit, settings=settings)
    config = task.config
    if config is None:
        return task
    rows = tuple(_row(line, config) for line in lines.rows())
    if not rows:
        raise SetInvalid(lines.name, None, None, "holds no items")
    return HarnessTask(name, rows, None, settings=settings)


def _row(line: Line, config: HarnessConfig) -> Mapping[str, Any]:
    for name in sorted(config.fields()):
        if name not in line.row:
            raise line.wrong(name, "is missing, and the task's templates name it")
        value = line.row[name]
        if name == config.choice_field:
            _check_choices(line, name, value)
        elif not isinstance(value, PLAIN):
            raise line.wrong(name, "must be a text or a number, to stand in a template")
        elif isinstance(value, str):
            line.file.bounded(value, line.number, name)
    context = rendered(config.description + config.doc_to_text, line.row)
    if config.output_type != "loglikelihood_rolling" and not context.strip():
        raise line.wrong("doc_to_text", "gives a context of white space alone, which cannot be scored")
    if isinstance(config.doc_to_target, str):
        target = rendered(config.doc_to_target, line.row)
        if not target.strip():
            raise line.wrong("doc_to_target", "is empty for this item")
        if config.output_type == "multiple_choice":
            _check_answer(line, config, target)
    return {name: line.row[name] for name in sorted(config.fields())}


def _check_choices(line: Line, name: str, value: object) -> None:
    if not isinstance(value, list) or not 2 <= len(value) <= line.file.limits.choices:
        raise line.wrong(name, f"must be a list of 2 to {line.file.limits.choices} texts")
    if not all(isinstance(each, str) and each for each in value):
        raise line.wrong(name, "must hold texts that are not empty")


def _check_answer(line: Line, config: HarnessConfig, target: str) -> None:
    named = config.choice_field
    choices = line.row[named] if named is not None else list(config.doc_to_choice or ())
    is_index = target.strip().isdecimal() and int(target) < len(choices)
    if not is_index and target not in choices:
        raise line.wrong("doc_to_target", f"gives {target[:80]!r}, neither a choice nor the index of one")
