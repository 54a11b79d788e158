"""Webhook endpoints: made, changed, tested, rotated, removed; and what was delivered."""

from starlette.testclient import TestClient

from jobs.announcements import TYPES
from tests.api.conftest import ORDER

BODY = {"url": "https://example.org/hook", "events": ["merge.succeeded"], "description": "ours"}


def test_an_endpoint_lives_from_creation_to_removal(api: TestClient) -> None:
    answer = api.post("/v1/webhook-endpoints", json=BODY)
    assert answer.status_code == 201
    made = answer.json()
    here = answer.headers["location"]
    shown = api.get(here).json()
    assert shown == {key: value for key, value in made.items() if key != "secret"}
    assert api.get("/v1/webhook-endpoints").json()["data"] == [shown]
    changed = api.patch(here, json={"events": ["*"], "enabled": False}).json()
    assert (changed["events"], changed["url"]) == (["*"], BODY["url"])
    assert changed["disabled_at"]
    assert api.post(f"{here}/test").status_code == 409
    assert api.patch(here, json={"enabled": True}).json()["disabled_at"] is None
    assert api.patch(here, json={"description": "ours"}).json()["description"] == "ours"
    assert api.patch(here, json={}).json()["description"] == "ours"
    assert api.patch(here, json={"description": None}).json()["description"] is None
    for name in ("url", "events", "enabled"):
        refused = api.patch(here, json={name: None})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, f"/{name}")
    assert api.delete(here).status_code == 204
    assert api.get(here).status_code == 404


def test_a_rotated_secret_is_new_and_the_old_one_holds_for_a_while(api: TestClient) -> None:
    made = api.post("/v1/webhook-endpoints", json=BODY).json()
    rotated = api.post(f"/v1/webhook-endpoints/{made['id']}/rotate-secret").json()
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != made["secret"]
    assert rotated["old_secret_until"] > made["created_at"]


def test_deliveries_are_listed_in_pages_and_repeated_under_their_id(api: TestClient) -> None:
    here = api.post("/v1/webhook-endpoints", json=BODY).headers["location"]
    sent = [api.post(f"{here}/test").json() for _ in range(3)]
    first = api.get(f"{here}/deliveries?limit=2").json()
    rest = api.get(f"{here}/deliveries", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [each["id"] for each in first["data"] + rest["data"]] == [each["id"] for each in sent][::-1]
    assert not rest["has_more"]
    again = api.post(f"{here}/deliveries/{sent[0]['id']}/redeliver")
    assert (again.status_code, again.json()["message_id"]) == (202, sent[0]["message_id"])
    assert api.get(f"{here}/deliveries?state=delivered").json()["data"] == []


def test_a_delivery_of_another_endpoint_is_not_found_here(api: TestClient) -> None:
    first = api.post("/v1/webhook-endpoints", json=BODY).headers["location"]
    second = api.post("/v1/webhook-endpoints", json=BODY).headers["location"]
    delivery = api.post(f"{first}/test").json()["id"]
    assert api.post(f"{second}/deliveries/{delivery}/redeliver").status_code == 404


def test_unfit_urls_events_and_secrets_are_named(api: TestClient) -> None:
    for change, pointer in (
        ({"url": "http://example.org/hook"}, "/url"),
        ({"url": "https://user:pass@example.org/"}, "/url"),
        ({"url": "https://example.org:444/"}, "/url"),
        ({"events": ["merge.exploded"]}, "/events/0"),
        ({"events": []}, "/events"),
        ({"secret": "whsec_short"}, "/secret"),
        ({"tenant_id": "ten_x"}, "/tenant_id"),
        ({"disabled_at": None}, "/disabled_at"),
    ):
        answer = api.post("/v1/webhook-endpoints", json=BODY | change)
        assert answer.status_code == 422, change
        assert answer.json()["errors"][0]["pointer"] == pointer


def test_what_a_jobs_own_webhook_was_sent_can_be_seen(api: TestClient) -> None:
    told = {"url": "https://example.org/mine", "events": list(TYPES)}
    job = api.post("/v1/jobs", json=ORDER | {"webhook": told}).json()
    other = api.post("/v1/jobs", json=ORDER).json()
    asked = "/v1/webhook-endpoints?job_id="
    (found,) = api.get(asked + job["id"]).json()["data"]
    assert (found["url"], found["events"]) == (told["url"], list(TYPES))
    (sent,) = api.get(f"/v1/webhook-endpoints/{found['id']}/deliveries").json()["data"]
    assert (sent["type"], sent["job_id"]) == ("merge.queued", job["id"])
    assert api.get(asked + other["id"]).json()["data"] == []
    assert api.get("/v1/webhook-endpoints").json()["data"] == []
    assert api.get(asked + "job_x").status_code == 404
    here = f"/v1/webhook-endpoints/{found['id']}"
    assert api.patch(here, json={"events": found["events"]}).status_code == 200
