"""What all bodies share."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Item = TypeVar("Item")


class In(BaseModel):
    """A body that comes in: unknown fields are refused, so nobody sets what is not theirs to set."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)


class Out(BaseModel):
    """A body that goes out, made from a row."""

    model_config = ConfigDict(from_attributes=True)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _sensible(moment: datetime) -> datetime:
    if not 2000 <= moment.year < 3000:
        raise PydanticCustomError("year", "must be a time in the years 2000 to 2999")
    return moment


Instant = Annotated[AwareDatetime, AfterValidator(_sensible)]
"""A time that comes in: with its offset from UTC, and one that every database and calendar can tell."""
Moment = Annotated[datetime, AfterValidator(_utc)]
Name = Annotated[str, Field(min_length=1, max_length=128)]


class PageOut(Out, Generic[Item]):
    """One page of a list, newest first."""

    data: list[Item]
    has_more: bool = False
    next_cursor: str | None = Field(None, description="Ask again with `cursor` set to this")


class ProblemErrorOut(Out):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(extra="allow")

    pointer: str = Field(description="JSON pointer into the body, or `/name` of the parameter")
    code: str
    detail: str


class ProblemOut(Out):
    """Problem details (RFC 9457)."""

    type: str = Field(description="A page that describes `code`")
    title: str
    status: int
    detail: str
    instance: str | None
    code: str = Field(description="Stable; meant for programs")
    request_id: str | None
    errors: list[ProblemErrorOut]


PROBLEM_CONTENT: dict[str, Any] = {
    "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemOut"}}
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documents the refusals of a route besides those that every route has."""
    said = {
        400: "Malformed",
        401: "No valid API key",
        403: "A scope is missing",
        404: "Nothing there, or another tenant's",
        409: "The state does not allow it, or the key is in use",
        413: "Body too large",
        415: "Content type not taken",
        422: "A field is wrong, or the recipe cannot work",
        429: "Too many requests",
        503: "A part that is needed is away; try later",
        504: "Took too long",
    }
    chosen = sorted({400, 401, 403, 422, 429, 503, *statuses})
    return {status: {"description": said[status], "content": PROBLEM_CONTENT} for status in chosen}
