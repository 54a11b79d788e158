"""API keys and Hub credentials of the caller's tenant."""

from fastapi import APIRouter, Response

from api.bodies import StrictRoute
from api.deps import JSON, Id, InDesk, KeyKeeper
from api.schemas.common import PageOut, problems
from api.schemas.keys import (
    ApiKeyCreate,
    ApiKeyCreatedOut,
    ApiKeyOut,
    HubCredentialCreate,
    HubCredentialOut,
)
from jobs import credentials, keys

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=problems(), dependencies=[JSON])


@router.get("/api-keys", tags=["api-keys"])
def list_api_keys(desk: InDesk, caller: KeyKeeper) -> PageOut[ApiKeyOut]:
    """The tenant's keys, newest first, without secrets."""
    with desk.read() as session:
        return PageOut(data=[ApiKeyOut.model_validate(row) for row in keys.list_keys(session, caller)])


@router.post("/api-keys", status_code=201, tags=["api-keys"], responses=problems(413, 415))
def create_api_key(
    desk: InDesk, caller: KeyKeeper, body: ApiKeyCreate, response: Response
) -> ApiKeyCreatedOut:
    """A new key; its secret is shown this once. A key can only hand on scopes that it has itself."""
    for scope in body.scopes:
        caller.require(scope)
    with desk.begin() as session:
        row, secret = keys.create_key(session, caller.tenant_id, body.name, body.scopes, body.expires_at)
    response.headers["Location"] = f"/v1/api-keys/{row.id}"
    return ApiKeyCreatedOut(**ApiKeyOut.model_validate(row).model_dump(), secret=secret)


@router.delete("/api-keys/{key_id}", tags=["api-keys"], responses=problems(404))
def revoke_api_key(desk: InDesk, caller: KeyKeeper, key_id: Id) -> ApiKeyOut:
    """Revokes a key. Other API processes notice within seconds."""
    with desk.begin() as session:
        row = keys.revoke_key(session, caller, key_id)
    desk.callers.forget()
    return ApiKeyOut.model_validate(row)


@router.get("/hub-credentials", tags=["hub-credentials"])
def list_hub_credentials(desk: InDesk, caller: KeyKeeper) -> PageOut[HubCredentialOut]:
    """The tenant's Hub tokens, newest first, without the tokens."""
    with desk.read() as session:
        rows = credentials.list_credentials(session, caller.tenant_id)
        return PageOut(data=[HubCredentialOut.model_validate(row) for row in rows])


@router.post("/hub-credentials", status_code=201, tags=["hub-credentials"], responses=problems(413, 415))
def store_hub_credential(
    desk: InDesk, caller: KeyKeeper, body: HubCredentialCreate, response: Response
) -> HubCredentialOut:
    """Keeps a Hub token, encrypted; jobs name it by its id."""
    token = body.token.get_secret_value()
    with desk.begin() as session:
        row = credentials.store_token(session, desk.keyring, caller.tenant_id, body.name, token)
        session.refresh(row)
    response.headers["Location"] = f"/v1/hub-credentials/{row.id}"
    return HubCredentialOut.model_validate(row)


@router.delete(
    "/hub-credentials/{credential_id}", status_code=204, tags=["hub-credentials"], responses=problems(404)
)
def forget_hub_credential(desk: InDesk, caller: KeyKeeper, credential_id: Id) -> None:
    """Forgets a Hub token."""
    with desk.begin() as session:
        credentials.revoke_credential(session, caller.tenant_id, credential_id)
