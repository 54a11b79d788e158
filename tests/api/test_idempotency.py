"""The same key gives the same answer; a refused request leaves nothing behind."""

import threading

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

import db.idempotency
from api.intake import Key, reserved
from jobs import idempotency
from tests.api.conftest import ORDER, Who

KEY = {"Idempotency-Key": "order-1"}


def test_the_same_request_again_gets_the_same_answer_and_makes_no_second_job(api: TestClient) -> None:
    first = api.post("/v1/jobs", json=ORDER, headers=KEY)
    reordered = dict(reversed(ORDER.items()))
    again = api.post("/v1/jobs", json=reordered, headers=KEY)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_another_body_under_the_same_key_is_refused(api: TestClient) -> None:
    api.post("/v1/jobs", json=ORDER, headers=KEY)
    answer = api.post("/v1/jobs", json=ORDER | {"priority": 1}, headers=KEY)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")


def test_a_key_in_use_is_answered_409(api: TestClient, sessions: sessionmaker[Session], anna: Who) -> None:
    hashed = idempotency.request_hash("POST", "/v1/jobs", ORDER)
    with sessions.begin() as session:
        under_way = idempotency.reserve(session, anna.caller.tenant_id, "order-1", hashed)
    answer = api.post("/v1/jobs", json=ORDER, headers=KEY)
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_progress")
    with sessions.begin() as session:
        assert isinstance(under_way, idempotency.Reservation)
        idempotency.release(session, under_way)
    assert api.post("/v1/jobs", json=ORDER, headers=KEY).status_code == 202


def test_a_key_is_held_for_as_long_as_planning_may_take(api: TestClient, anna: Who) -> None:
    desk = api.app.state.desk  # type: ignore[attr-defined]
    desk.settings.plan_timeout_seconds = 3600.0
    with reserved(desk, anna.caller, Key("order-1", "hash")), desk.begin() as session:
        row = db.idempotency.find(session, anna.caller.tenant_id, "order-1", 60.0)
        assert row is not None and row.reserved_until is not None
        assert (row.reserved_until - row.created_at).total_seconds() > 3600


def test_a_refused_request_leaves_the_key_free(api: TestClient) -> None:
    wrong = {"recipe": ORDER["recipe"] | {"sources": [{"model": "nowhere"}]}}
    assert api.post("/v1/jobs", json=wrong, headers=KEY).status_code == 422
    assert api.post("/v1/jobs", json=ORDER, headers=KEY).status_code == 202


def test_keys_of_two_tenants_have_nothing_to_do_with_each_other(
    client: TestClient, anna: Who, bert: Who
) -> None:
    first = client.post("/v1/jobs", json=ORDER, headers=KEY | anna.headers)
    second = client.post("/v1/jobs", json=ORDER, headers=KEY | bert.headers)
    assert second.status_code == 202
    assert first.json()["id"] != second.json()["id"]


def test_many_at_once_make_one_job(api: TestClient) -> None:
    answers: list[tuple[int, str]] = []

    def send() -> None:
        answer = api.post("/v1/jobs", json=ORDER, headers=KEY)
        answers.append((answer.status_code, answer.json().get("id", answer.json().get("code"))))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    made = {said for status, said in answers if status == 202}
    assert len(made) == 1
    assert {said for status, said in answers if status != 202} <= {"idempotency_in_progress"}
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_a_retry_is_made_once(api: TestClient) -> None:
    job = api.post("/v1/jobs", json=ORDER).json()
    api.post(f"/v1/jobs/{job['id']}/cancel")
    first = api.post(f"/v1/jobs/{job['id']}/retry", headers=KEY)
    again = api.post(f"/v1/jobs/{job['id']}/retry", headers=KEY)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_unfit_key_is_refused(api: TestClient, key: str) -> None:
    answer = api.post("/v1/jobs", json=ORDER, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
