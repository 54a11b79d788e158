"""Evaluation sets: what a model is scored on, read from text or JSON lines and checked line by line.

perplexity   a ``.txt`` file is one text; any other file is JSON lines ``{"text": "..."}``
choice       JSON lines ``{"context": "...", "choices": ["...", ...], "answer": 0}``; ``question`` may stand
for
             ``context``, and ``answer`` may be the index, a letter (``"B"``) or the text of the right choice

Loads without torch, so a set can be refused before a job is accepted.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from scoring.errors import SetInvalid, SetTooLarge

Kind = Literal["perplexity", "choice"]
KINDS: tuple[Kind, ...] = ("perplexity", "choice")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a set may hold: bytes of the file, items read, choices of a question, characters of one item."""

    file_bytes: int = 16 << 20
    items: int = 20_000
    choices: int = 64
    item_characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Question:
    """A context and the continuations to choose from; ``answer`` is the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class PerplexityTask:
    """Texts whose likelihood is measured."""

    name: str
    texts: tuple[str, ...]
    kind: Literal["perplexity"] = "perplexity"


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """Questions with listed answers."""

    name: str
    questions: tuple[Question, ...]
    kind: Literal["choice"] = "choice"


Task = PerplexityTask | ChoiceTask
DEFAULT_LIMITS = Limits()


def parse_task(
    name: str, kind: str, body: bytes, *, file: str, limit: int | None = None, limits: Limits = DEFAULT_LIMITS
) -> Task:
    """Reads an evaluation set.

    ``file`` is the name shown in errors (and ``.txt`` decides the form of a perplexity set); ``limit`` reads
    only the first so many items. Raises SetInvalid with the line and field, or SetTooLarge.
    """
    if kind not in KINDS:
        raise SetInvalid(file, None, "kind", f"is {kind!r}; it must be one of {', '.join(KINDS)}")
    if limit is not None and limit < 1:
        raise SetInvalid(file, None, "limit", f"is {limit}; it must be at least 1")
    if len(body) > limits.file_bytes:
        raise SetTooLarge(f"{file} has {len(body):,} bytes; at most {limits.file_bytes:,} are scored")
    text = _decode(body, file)
    if kind == "choice":
        questions = tuple(
            _question(row, file, line, limits) for line, row in _rows(text, file, limit, limits)
        )
        _not_empty(questions, file, "questions")
        return ChoiceTask(name, questions)
    texts: tuple[str, ...]
    if file.lower().endswith(".txt"):
        texts = (_bounded(text, file, 1, None, limits),) if text.strip() else ()
    else:
        texts = tuple(_text(row, file, line, limits) for line, row in _rows(text, file, limit, limits))
    _not_empty(texts, file, "texts")
    return PerplexityTask(name, texts)


def _decode(body: bytes, file: str) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise SetInvalid(file, line, None, "is not UTF-8 text; save the file as UTF-8") from error


def _not_empty(items: tuple[object, ...], file: str, what: str) -> None:
    if not items:
        raise SetInvalid(file, None, None, f"holds no {what}")


def _rows(text: str, file: str, limit: int | None, limits: Limits) -> Iterator[tuple[int, dict[str, Any]]]:
    count = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if count == limit:
            return
        if count == limits.items:
            raise SetTooLarge(
                f"{file} holds more than {limits.items:,} items; set a limit to score the first ones"
            )
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be parsed"
            raise SetInvalid(
                file, number, None, f"is not JSON ({reason}); write one JSON object a line"
            ) from error
        if not isinstance(row, dict):
            raise SetInvalid(file, number, None, f"is a JSON {_json_type(row)}, not an object")
        count += 1
        yield number, row


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def _string(row: dict[str, Any], field: str, file: str, line: int, limits: Limits) -> str:
    if field not in row:
        has = ", ".join(sorted(row)[:8]) or "nothing"
        raise SetInvalid(file, line, field, f"is missing (the line has: {has[:200]})")
    if not isinstance(row[field], str):
        raise SetInvalid(file, line, field, f"is a JSON {_json_type(row[field])}, not a string")
    return _bounded(row[field], file, line, field, limits)


def _bounded(text: str, file: str, line: int, field: str | None, limits: Limits) -> str:
    if len(text) > limits.item_characters:
        where = f"{file} line {line}" + (f", field {field!r}" if field else "")
        raise SetTooLarge(
            f"{where} has {len(text):,} characters; at most {limits.item_characters:,} are scored at once"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SetInvalid(
            file, line, field, "holds half of a surrogate pair, which is no character"
        ) from error
    return text


def _text(row: dict[str, Any], file: str, line: int, limits: Limits) -> str:
    text = _string(row, "text", file, line, limits)
    if not text:
        raise SetInvalid(file, line, "text", "is empty")
    return text


def _question(row: dict[str, Any], file: str, line: int, limits: Limits) -> Question:
    if "context" in row and "question" in row:
        raise SetInvalid(file, line, "question", "stands beside 'context'; keep one of the two")
    context = _string(row, "question" if "question" in row else "context", file, line, limits)
    choices = row.get("choices")
    if not isinstance(choices, list) or not 2 <= len(choices) <= limits.choices:
        raise SetInvalid(file, line, "choices", f"must be a list of 2 to {limits.choices} strings")
    for index, choice in enumerate(choices):
        where = f"choices[{index}]"
        if not isinstance(choice, str) or not choice:
            raise SetInvalid(file, line, where, "must be a string that is not empty")
        _bounded(choice, file, line, where, limits)
    if len(set(choices)) != len(choices):
        raise SetInvalid(file, line, "choices", "holds the same choice twice")
    return Question(context, tuple(choices), _answer(row, choices, file, line))


def _answer(row: dict[str, Any], choices: list[str], file: str, line: int) -> int:
    answer = row.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        index = ord(answer) - ord("A") if len(answer) == 1 else -1
        if 0 <= index < len(choices):
            return index
    last = chr(ord("A") + len(choices) - 1) if len(choices) <= 26 else "Z"
    raise SetInvalid(
        file,
        line,
        "answer",
        f"must be the right choice's index (0 to {len(choices) - 1}), letter (A to {last}) or text",
    )
