"""Keyset pages: one row more than shown is read, and the last one shown becomes the cursor."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response

from api.cursors import Position
from api.deps import Desk, PageAsked
from api.schemas.common import PageOut

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
Body = TypeVar("Body")


def start(desk: Desk, asked: PageAsked, filters: Mapping[str, Any]) -> After:
    """The row after which the page begins; nothing for the first page."""
    if asked.cursor is None:
        return None
    position = desk.cursors.read(asked.cursor, filters)
    return position.created_at, position.id


def page(
    desk: Desk,
    request: Request,
    response: Response,
    asked: PageAsked,
    filters: Mapping[str, Any],
    rows: Sequence[Row],
    shape: Callable[[Row], Body],
) -> PageOut[Body]:
    """The page made of ``rows`` (one more than ``asked.limit`` when there are more), with its Link header."""
    shown = rows[: asked.limit]
    if len(rows) <= asked.limit:
        return PageOut(data=[shape(row) for row in shown])
    last = shown[-1]
    cursor = desk.cursors.write(Position(last.created_at, last.id), filters)
    following = request.url.include_query_params(cursor=cursor)
    response.headers["Link"] = f'<{desk.settings.url}{following.path}?{following.query}>; rel="next"'
    return PageOut(data=[shape(row) for row in shown], has_more=True, next_cursor=cursor)
