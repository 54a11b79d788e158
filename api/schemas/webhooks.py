"""Bodies of webhook endpoints and deliveries."""

from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from api.schemas.common import In, Moment, Out
from jobs.announcements import DEFAULT_TYPES, TYPES

Url = Annotated[str, Field(min_length=1, max_length=2048, examples=["https://example.org/hooks/mergery"])]
Events = Annotated[
    list[Annotated[str, Field(max_length=64)]],
    Field(min_length=1, max_length=64, description=f"`*` or some of: {', '.join(TYPES)}"),
]
Description = Annotated[str, Field(max_length=256)]


class EndpointCreate(In):
    """A URL that wants to be told."""

    url: Url
    events: Events | None = Field(None, description=f"Default: {', '.join(DEFAULT_TYPES)}")
    description: Description | None = None
    secret: Annotated[SecretStr, Field(max_length=128)] | None = Field(
        None, description="`whsec_` and base64 of 24 to 64 bytes; made for you when left out"
    )


class EndpointUpdate(In):
    """What to change; fields left out stay. Only a description can be taken away, by ``null``."""

    url: Url | SkipJsonSchema[None] = None
    events: Events | SkipJsonSchema[None] = None
    description: Description | None = None
    enabled: bool | SkipJsonSchema[None] = None

    @field_validator("url", "events", "enabled", mode="before")
    @classmethod
    def _stays(cls, given: Any) -> Any:
        if given is None:
            raise PydanticCustomError("null", "cannot be null; leave it out and it stays")
        return given

    @field_validator("description", mode="before")
    @classmethod
    def _taken_away(cls, given: Any) -> Any:
        return "" if given is None else given


class EndpointOut(Out):
    """An endpoint without its secret."""

    id: str
    url: str
    events: list[str]
    description: str | None
    created_at: Moment
    failing_since: Moment | None
    disabled_at: Moment | None
    disabled_reason: str | None
    old_secret_until: Moment | None


class EndpointCreatedOut(EndpointOut):
    """A new endpoint; ``secret`` is shown this once."""

    secret: str


class SecretOut(Out):
    """A new secret, shown this once; the old one signs beside it until ``old_secret_until``."""

    secret: str
    old_secret_until: Moment | None


class DeliveryOut(Out):
    """One message to one endpoint; ``message_id`` is its ``webhook-id`` on every try."""

    id: str
    endpoint_id: str
    job_id: str | None
    message_id: str
    type: str
    state: str
    attempts: int
    next_attempt_at: Moment
    attempted_at: Moment | None
    delivered_at: Moment | None
    status_code: int | None
    error: str | None
    created_at: Moment
