"""The page of API keys and Hub tokens."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from api.dashboard.render import page
from api.dashboard.visit import Author, Form, PageRoute, Visit, Visitor, see
from api.deps import Id
from api.errors import to_problem
from jobs import credentials, keys
from jobs.errors import JobError

USUAL = ("merges:read", "merges:write")
"""Scopes that a new key has unless its maker says otherwise."""

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/keys")
def key_list(visit: Visitor) -> Response:
    """The tenant's API keys."""
    return _keys(visit)


@router.post("/keys")
def make_key(visit: Author, form: Form) -> Response:
    """Makes a key and shows its secret this once."""
    visit.caller.require("keys")
    scopes = [each for each in form.getlist("scopes") if isinstance(each, str)]
    name = str(form.get("name") or "").strip()[:100] or "key"
    try:
        for scope in set(scopes) & set(keys.SCOPES):
            visit.caller.require(scope)
        with visit.desk.begin() as session:
            _, secret = keys.create_key(session, visit.caller.tenant_id, name, scopes)
    except JobError as error:
        return _keys(visit, name, scopes, wrong=str(error), status=to_problem(error).status_code)
    return _keys(visit, secret=secret)


@router.post("/keys/{key_id}/revoke")
def revoke_key(visit: Author, key_id: Id) -> Response:
    """Makes a key useless from now on."""
    visit.caller.require("keys")
    with visit.desk.begin() as session:
        keys.revoke_key(session, visit.caller, key_id)
    visit.desk.callers.forget()
    return see("/keys")


@router.post("/tokens")
def store_token(visit: Author, form: Form) -> Response:
    """Keeps a Hub token, encrypted; it is never shown again."""
    visit.caller.require("keys")
    name = str(form.get("name") or "").strip()[:100] or "Hub"
    token = str(form.get("token") or "").strip()
    if not token:
        return _keys(visit, wrong="A Hub token cannot be empty.", status=422)
    with visit.desk.begin() as session:
        credentials.store_token(session, visit.desk.keyring, visit.caller.tenant_id, name, token)
    return see("/keys")


@router.post("/tokens/{credential_id}/forget")
def forget_token(visit: Author, credential_id: Id) -> Response:
    """Forgets a Hub token."""
    visit.caller.require("keys")
    with visit.desk.begin() as session:
        credentials.revoke_credential(session, visit.caller.tenant_id, credential_id)
    return see("/keys")


def _keys(
    visit: Visit,
    name: str = "",
    chosen: Sequence[str] = USUAL,
    *,
    secret: str = "",
    wrong: str = "",
    status: int = 200,
) -> Response:
    visit.caller.require("keys")
    with visit.desk.begin() as session:
        return page(
            "keys.html",
            status,
            here="/keys",
            csrf=visit.csrf,
            keys=keys.list_keys(session, visit.caller),
            tokens=credentials.list_credentials(session, visit.caller.tenant_id),
            mine=visit.caller.key_id,
            scopes=keys.SCOPES,
            name=name,
            chosen=chosen,
            secret=secret,
            wrong=wrong,
        )
