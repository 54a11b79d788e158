"""Keyset pages: one row more than shown is read, and the last one shown becomes the cursor."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from fastapi import Request

from api.answers import Answer
from api.cursors import Position
from api.deps import Desk, PageAsked

After = tuple[datetime, str] | None


class Listed(Protocol):
    """A row that lists are ordered by."""

    @property
    def id(self) -> Any:
        """Breaks ties."""

    @property
    def created_at(self) -> Any:
        """When it was made."""


Row = TypeVar("Row", bound=Listed)


def start(desk: Desk, asked: PageAsked, filters: Mapping[str, Any]) -> After:
    """The row after which the page begins; nothing for the first page."""
    if asked.cursor is None:
        return None
    position = desk.cursors.read(asked.cursor, filters)
    return position.created_at, position.id


def page(
    desk: Desk,
    request: Request,
    asked: PageAsked,
    filters: Mapping[str, Any],
    rows: Sequence[Row],
    shape: Callable[[Row], Any],
) -> Answer:
    """The page made of ``rows`` (one more than ``asked.limit`` when there are more), with its Link header."""
    shown = rows[: asked.limit]
    has_more, cursor, headers = len(rows) > asked.limit, None, {}
    if has_more:
        last = shown[-1]
        cursor = desk.cursors.write(Position(last.created_at, last.id), filters)
        following = request.url.include_query_params(cursor=cursor)
        headers["Link"] = f'<{desk.settings.url}{following.path}?{following.query}>; rel="next"'
    body = {"data": [shape(row) for row in shown], "has_more": has_more, "next_cursor": cursor}
    return Answer(body, headers=headers)
