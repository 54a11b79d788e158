"""Bodies of API keys and Hub credentials."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from api.schemas.common import In, Instant, Moment, Name, Out

Scope = Literal["merges:read", "merges:write", "webhooks", "keys", "admin"]


class ApiKeyCreate(In):
    """A new API key."""

    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=5)]
    expires_at: Instant | None = None


class ApiKeyOut(Out):
    """An API key without its secret."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: Moment
    expires_at: Moment | None
    last_used_at: Moment | None
    revoked_at: Moment | None


class ApiKeyCreatedOut(ApiKeyOut):
    """A new API key; ``secret`` is shown this once."""

    secret: str


class HubCredentialCreate(In):
    """A Hub token to be kept, encrypted."""

    name: Name
    token: Annotated[SecretStr, Field(min_length=1, max_length=512)]


class HubCredentialOut(Out):
    """A kept Hub token; the token itself never comes out again."""

    id: str
    name: str
    created_at: Moment
    last_used_at: Moment | None
