"""Reads files of items: JSON lines, each checked and named by file, line and field. Loads without torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scoring.errors import SetInvalid, SetTooLarge

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a set may hold: bytes of the file, items read, choices of a question, characters of one item."""

    file_bytes: int = 16 << 20
    items: int = 20_000
    choices: int = 64
    item_characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Lines:
    """A file that is read: ``name`` is shown in errors, ``limit`` is how many items are wanted of it."""

    name: str
    text: str
    limit: int | None
    limits: Limits

    def rows(self) -> Iterator["Line"]:
        """Its objects, one a line that is not empty."""
        count = 0
        for number, line in enumerate(self.text.split("\n"), start=1):
            if not line.strip():
                continue
            if count == self.limit:
                return
            if count == self.limits.items:
                raise SetTooLarge(
                    f"{self.name} holds more than {self.limits.items:,} items; "
                    "set a limit to score the first ones"
                )
            count += 1
            yield Line(self, number, self._object(number, line))

    def _object(self, number: int, line: str) -> Row:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be parsed"
            problem = f"is not JSON ({reason}); write one JSON object a line"
            raise SetInvalid(self.name, number, None, problem) from error
        if not isinstance(row, dict):
            raise SetInvalid(self.name, number, None, f"is a JSON {_json_type(row)}, not an object")
        return row

    def bounded(self, text: str, line: int, field: str | None) -> str:
        """``text`` if it is not too long and all of it is characters."""
        most = self.limits.item_characters
        if len(text) > most:
            where = f"{self.name} line {line}" + (f", field {field!r}" if field else "")
            raise SetTooLarge(f"{where} has {len(text):,} characters; at most {most:,} are scored at once")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problem = "holds half of a surrogate pair, which is no character"
            raise SetInvalid(self.name, line, field, problem) from error
        return text


@dataclass(frozen=True, slots=True)
class Line:
    """One object of a file and where it stands."""

    file: Lines
    number: int
    row: Row

    def wrong(self, field: str | None, problem: str) -> SetInvalid:
        """The error that names this line."""
        return SetInvalid(self.file.name, self.number, field, problem)

    def string(self, field: str) -> str:
        """A field that is a string."""
        if field not in self.row:
            has = ", ".join(sorted(self.row)[:8]) or "nothing"
            raise self.wrong(field, f"is missing (the line has: {has[:200]})")
        if not isinstance(self.row[field], str):
            raise self.wrong(field, f"is a JSON {_json_type(self.row[field])}, not a string")
        return self.file.bounded(self.row[field], self.number, field)

    def text(self, field: str) -> str:
        """A field that is a string with something in it."""
        found = self.string(field)
        if not found.strip():
            raise self.wrong(field, "is empty")
        return found

    def strings(self, field: str, most: int) -> tuple[str, ...]:
        """A field that is a string, or a list of 1 to ``most`` of them."""
        value = self.row.get(field)
        if not isinstance(value, list):
            return (self.string(field),)
        if not 1 <= len(value) <= most or not all(isinstance(each, str) for each in value):
            raise self.wrong(field, f"must be a string or a list of 1 to {most} strings")
        return tuple(self.file.bounded(each, self.number, field) for each in value)

    def number_of(self, field: str) -> float:
        """A field that is a number."""
        value = self.row.get(field)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or value != value
            or abs(value) > 1e30
        ):
            raise self.wrong(field, "must be a finite number")
        return float(value)


def decoded(body: bytes, file: str) -> str:
    """The text of a file; raises ``SetInvalid`` with the line that is not UTF-8."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise SetInvalid(file, line, None, "is not UTF-8 text; save the file as UTF-8") from error


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]
