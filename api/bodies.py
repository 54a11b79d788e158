"""JSON bodies as strangers send them: read strictly, before any model looks at them."""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.errors import Problem, pointer_of

MAX_DEPTH = 32


def refuse(detail: str, pointer: str = "") -> NoReturn:
    """Raises the 400 for a body that cannot be read."""
    errors = [{"in": "body", "pointer": pointer, "code": "malformed", "detail": detail}]
    raise Problem("malformed", detail, errors=errors)


def load_json(raw: bytes) -> Any:
    """The value in ``raw``. Refused with 400: what is not UTF-8 JSON, a key given twice, NaN and infinity,
    nesting over 32 levels, and texts that no database keeps (a NUL, half of a surrogate pair).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            refuse("a JSON object holds the same key twice")
        return made

    def constant(name: str) -> NoReturn:
        refuse(f"{name} is not JSON")

    try:
        # Left to itself, json reads UTF-16 and UTF-32 too, and halves of surrogate pairs in UTF-8.
        text = raw.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        refuse(f"the body is nested deeper than {MAX_DEPTH} levels")
    except ValueError as error:
        refuse(f"the body is not JSON: {error}")
    check_tree(value)
    return value


def check_tree(value: Any, at: tuple[str | int, ...] = ()) -> None:
    """Refuses, with its pointer, whatever in plain data could not be stored or is nested too deep."""
    if len(at) > MAX_DEPTH:
        refuse(f"the body is nested deeper than {MAX_DEPTH} levels")
    match value:
        case str():
            _check_text(value, at)
        case float() if not math.isfinite(value):
            refuse("a number is too large", pointer_of(at))
        case list():
            for position, item in enumerate(value):
                check_tree(item, (*at, position))
        case dict():
            for key, item in value.items():
                _check_text(key, at)
                check_tree(item, (*at, key))


def _check_text(text: str, at: tuple[str | int, ...]) -> None:
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        pointer = pointer_of(part for part in at if isinstance(part, int) or part.isprintable())
        refuse("a text holds a NUL or half of a surrogate pair", pointer)


class StrictRequest(Request):
    """A request whose JSON is read by ``load_json``."""

    async def json(self) -> Any:
        return load_json(await self.body())


class StrictRoute(APIRoute):
    """A route whose bodies are read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict
