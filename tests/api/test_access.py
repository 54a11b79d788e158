"""Who gets in, what a key may do, and that no tenant sees anything of another."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import create_app
from api.auth import CSRF_HEADER, Remembered
from api.deps import Desk
from db import statistics
from jobs import webhooks
from jobs.keys import Caller
from settings import Settings
from tests.api.conftest import ORDER, Who
from tests.api.test_statistics import facts
from tests.waiting import until

DIGEST = "a1" * 32
SCOPES = ("merges:read", "merges:write", "webhooks", "keys")


def operations(app: FastAPI) -> list[tuple[str, str]]:
    paths = app.openapi()["paths"]
    return [(m.upper(), path) for path, found in paths.items() if path.startswith("/v1/") for m in found]


def fill(path: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        path = path.replace("{" + name + "}", value)
    return path


@pytest.fixture
def belongings(client: TestClient, anna: Who, sessions: sessionmaker[Session]) -> dict[str, str]:
    """Ids of one of each thing that belongs to Anna."""

    def made(path: str, **sent: Any) -> str:
        answer = client.post(path, headers=anna.headers | sent.pop("headers", {}), **sent)
        assert answer.status_code in (201, 202), answer.text
        return str(answer.json()["id"])

    endpoint = made("/v1/webhook-endpoints", json={"url": "https://example.org/hook"})
    with sessions.begin() as session:
        row = webhooks.get_endpoint(session, anna.caller.tenant_id, endpoint)
        delivery = webhooks.send_test(session, row).id
        statistics.put(session, anna.caller.tenant_id, DIGEST, facts(DIGEST))
    return {
        "job_id": made("/v1/jobs", json=ORDER),
        "endpoint_id": endpoint,
        "delivery_id": delivery,
        "key_id": made("/v1/api-keys", json={"name": "k", "scopes": ["merges:read"]}),
        "credential_id": made("/v1/hub-credentials", json={"name": "c", "token": "hf_x"}),
        "dataset_id": made("/v1/datasets", content="text", headers={"Content-Type": "text/plain"}),
        "digest": DIGEST,
    }


BODIES: dict[str, dict[str, str]] = {
    "/v1/jobs/{job_id}/append": {"model": "o/another"},
    "/v1/jobs/{job_id}/front/{place}/merge": {},
    "/v1/jobs/{job_id}/trials/{number}/merge": {},
}
"""What must be sent for the id to be looked at."""


def test_every_route_with_an_id_says_404_to_another_tenant(
    client: TestClient, app: FastAPI, anna: Who, bert: Who, belongings: dict[str, str]
) -> None:
    tried = 0
    for method, path in operations(app):
        if "{" not in path or "{name}" in path:
            continue
        body: dict[str, str] | None = BODIES.get(path, {} if method == "PATCH" else None)
        address = fill(path, belongings | {"number": "1", "place": "0"})
        answer = client.request(method, address, headers=bert.headers, json=body)
        assert answer.status_code == 404, (method, path, answer.text)
        assert answer.json()["code"] == "not_found"
        tried += 1
    assert tried >= 18
    still = client.get(f"/v1/jobs/{belongings['job_id']}", headers=anna.headers)
    assert still.json()["state"] == "queued"


def test_every_list_shows_only_ones_own(
    client: TestClient, app: FastAPI, anna: Who, bert: Who, belongings: dict[str, str]
) -> None:
    mine = set(belongings.values())
    tried = 0
    for method, path in operations(app):
        if method != "GET" or "{" in path:
            continue
        text = client.get(path, headers=bert.headers).text
        assert not any(each in text for each in mine), path
        tried += 1
    assert tried >= 8
    assert belongings["job_id"] in client.get("/v1/jobs", headers=anna.headers).text


def test_another_tenants_things_cannot_be_named_in_an_order(
    client: TestClient, bert: Who, belongings: dict[str, str]
) -> None:
    evaluate = {"sets": [{"name": "s", "kind": "perplexity", "data": {"dataset": belongings["dataset_id"]}}]}
    answer = client.post("/v1/jobs", json=ORDER | {"evaluate": evaluate}, headers=bert.headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/evaluate/sets/0/data/dataset"
    credential = {"hub_credential": belongings["credential_id"]}
    assert client.post("/v1/jobs", json=ORDER | credential, headers=bert.headers).status_code == 404


def test_every_route_needs_a_key(client: TestClient, app: FastAPI, belongings: dict[str, str]) -> None:
    for method, path in operations(app):
        with_body = method in ("POST", "PATCH") and "{" not in path
        body: dict[str, str] | None = {} if with_body else None
        answer = client.request(method, fill(path, belongings), json=body)
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_every_route_needs_its_scope(
    client: TestClient, app: FastAPI, someone: Callable[..., Who], belongings: dict[str, str]
) -> None:
    holders = {scope: someone("acme", scope) for scope in SCOPES}
    for method, path in operations(app):
        if path.startswith("/v1/methods"):
            continue
        url = fill(path, belongings)
        refused = {
            scope
            for scope, who in holders.items()
            if client.request(method, url + "?limit=0", headers=who.headers).status_code == 403
        }
        assert len(refused) == len(SCOPES) - 1, (method, path, refused)


def test_a_key_cannot_hand_on_what_it_does_not_have(client: TestClient, someone: Callable[..., Who]) -> None:
    keeper = someone("acme", "keys")
    answer = client.post(
        "/v1/api-keys", json={"name": "more", "scopes": ["keys", "admin"]}, headers=keeper.headers
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


def test_a_key_cannot_be_made_for_another_tenant(client: TestClient, anna: Who, bert: Who) -> None:
    body = {"name": "k", "scopes": ["admin"]}
    for sneaked in ({"tenant_id": bert.caller.tenant_id}, {"id": "key_x"}, {"hash": "0"}, {"secret": "s"}):
        answer = client.post("/v1/api-keys", json=body | sneaked, headers=anna.headers)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "extra_forbidden")


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", "2030-01-01T00:00:00"]
)
def test_an_odd_time_is_refused(client: TestClient, anna: Who, moment: str) -> None:
    body = {"name": "k", "scopes": ["admin"], "expires_at": moment}
    assert client.post("/v1/api-keys", json=body, headers=anna.headers).status_code == 422
    query = {"created_after": moment}
    assert client.get("/v1/jobs", params=query, headers=anna.headers).status_code == 422


def test_a_revoked_key_is_refused_at_once_by_the_process_that_revoked_it(
    client: TestClient, anna: Who, someone: Callable[..., Who]
) -> None:
    other = someone("acme", "merges:read")
    assert client.get("/v1/jobs", headers=other.headers).status_code == 200
    answer = client.delete(f"/v1/api-keys/{other.caller.key_id}", headers=anna.headers)
    assert answer.json()["revoked_at"]
    assert client.get("/v1/jobs", headers=other.headers).status_code == 401


@pytest.mark.parametrize("secret", ["", "mk_live_short", "mk_live_" + "0" * 47, "é", "Bearer"])
def test_what_is_no_key_is_refused(client: TestClient, secret: str) -> None:
    headers = {b"Authorization": f"Bearer {secret}".encode()}
    answer = client.get("/v1/jobs", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_a_secret_is_shown_once_and_a_token_never(client: TestClient, anna: Who) -> None:
    client.headers.update(anna.headers)
    key = client.post("/v1/api-keys", json={"name": "k", "scopes": ["merges:read"]}).json()
    client.post("/v1/hub-credentials", json={"name": "c", "token": "hf_canary"})
    endpoint = client.post("/v1/webhook-endpoints", json={"url": "https://example.org/h"}).json()
    assert key["secret"].startswith("mk_live_")
    assert endpoint["secret"].startswith("whsec_")
    for path in ("/v1/api-keys", "/v1/hub-credentials", "/v1/webhook-endpoints"):
        text = client.get(path).text
        assert not any(secret in text for secret in (key["secret"], endpoint["secret"], "hf_canary"))


def test_a_refused_body_is_not_repeated_in_the_answer(client: TestClient, anna: Who) -> None:
    body = {"name": "c", "token": "hf_canary", "extra": "hf_canary"}
    answer = client.post("/v1/hub-credentials", json=body, headers=anna.headers)
    assert answer.status_code == 422
    assert "hf_canary" not in answer.text


def test_a_session_reads_freely_and_changes_only_with_its_token(client: TestClient, anna: Who) -> None:
    desk: Desk = client.app.state.desk  # type: ignore[attr-defined]
    session = desk.signer.session(anna.caller.key_id)
    client.cookies.set(desk.signer.cookie, desk.signer.sign(session))
    assert client.get("/v1/jobs").status_code == 200
    refused = client.post("/v1/jobs", json=ORDER)
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf_failed")
    token = desk.signer.csrf_token(session)
    assert client.post("/v1/jobs", json=ORDER, headers={CSRF_HEADER: token}).status_code == 202
    other = desk.signer.csrf_token(desk.signer.session(anna.caller.key_id))
    assert client.post("/v1/jobs", json=ORDER, headers={CSRF_HEADER: other}).status_code == 403


def test_the_id_of_a_key_that_is_signed_in_is_no_key(client: TestClient, anna: Who) -> None:
    desk: Desk = client.app.state.desk  # type: ignore[attr-defined]
    client.get("/v1/jobs", headers=anna.headers)
    while not desk.feed.hearing:
        time.sleep(0.01)
    cookie = desk.signer.sign(desk.signer.session(anna.caller.key_id))
    assert client.get("/v1/jobs", headers={"Cookie": f"{desk.signer.cookie}={cookie}"}).status_code == 200
    bearer = {"Authorization": f"Bearer session {anna.caller.key_id}"}
    assert client.get("/v1/jobs", headers=bearer).status_code == 401
    assert client.post("/login", data={"key": f"session {anna.caller.key_id}"}).status_code == 401


def test_a_changed_or_old_session_is_none(client: TestClient, anna: Who) -> None:
    desk: Desk = client.app.state.desk  # type: ignore[attr-defined]
    good = desk.signer.sign(desk.signer.session(anna.caller.key_id))
    old = desk.signer.sign(desk.signer.session(anna.caller.key_id, seconds=-1))
    changed = good[:-6] + ("AAAAAA" if not good.endswith("AAAAAA") else "BBBBBB")
    for value in (old, changed, "x", "", "é", good[:40]):
        assert desk.signer.verify(value) is None
    assert desk.signer.verify(good) is not None


def test_a_revoked_key_is_refused_at_once_by_every_process(settings: Settings, anna: Who) -> None:
    with TestClient(create_app(settings)) as one, TestClient(create_app(settings)) as two:
        made = one.post("/v1/api-keys", json={"name": "k", "scopes": ["merges:read"]}, headers=anna.headers)
        bearer = {"Authorization": f"Bearer {made.json()['secret']}"}
        assert two.get("/v1/jobs", headers=bearer).status_code == 200
        assert two.get("/v1/jobs", headers=bearer).status_code == 200
        one.delete(f"/v1/api-keys/{made.json()['id']}", headers=anna.headers)
        until(lambda: two.get("/v1/jobs", headers=bearer).status_code == 401, 0.8)


def test_a_busy_key_is_looked_up_once(client: TestClient, app: FastAPI, anna: Who) -> None:
    desk: Desk = app.state.desk
    client.get("/v1/jobs", headers=anna.headers)
    while not desk.feed.hearing:
        time.sleep(0.01)
    said: list[str] = []
    event.listen(desk.engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    for _ in range(5):
        client.get("/v1/jobs", headers=anna.headers)
    assert sum("FROM api_key" in each for each in said) <= 1


def test_nobody_is_remembered_long_while_revocations_are_not_heard() -> None:
    now = [100.0]
    caller = Caller("ten_x", "key_x", frozenset())
    deaf = Remembered(lambda: False, lambda: now[0])
    hearing = Remembered(lambda: True, lambda: now[0])
    for each in (deaf, hearing):
        each.get("secret", lambda: caller)
    now[0] += 2.0
    assert (deaf.held("secret"), hearing.held("secret")) == (None, caller)


def test_a_key_revoked_while_it_is_looked_up_is_not_remembered() -> None:
    callers = Remembered(lambda: True)

    def find() -> Caller:
        callers.forget()
        return Caller("ten_x", "key_x", frozenset())

    callers.get("secret", find)
    assert callers.held("secret") is None


def test_a_key_is_not_remembered_past_its_end() -> None:
    callers = Remembered(lambda: True, lambda: 1000.0)
    ends = datetime.fromtimestamp(1001, UTC)
    callers.get("secret", lambda: Caller("ten_x", "key_x", frozenset(), ends))
    assert callers.seen["secret"][0] == 1001
