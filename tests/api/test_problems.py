"""Whatever goes wrong is a problem body with a stable code; whatever goes out has its id and its headers."""

import gzip
import json
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.errors import KINDS
from api.middleware import CONTENT_SECURITY_POLICY
from settings import Settings
from tests.api.conftest import ORDER

PROBLEM = "application/problem+json"


def test_a_problem_has_every_field(api: TestClient) -> None:
    answer = api.get("/v1/jobs/job_none", headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json() == {
        "type": "http://testserver/problems/not_found",
        "title": KINDS["not_found"].title,
        "status": 404,
        "detail": "there is no job 'job_none'",
        "instance": "/v1/jobs/job_none",
        "code": "not_found",
        "request_id": "mine-1",
        "errors": [],
    }


def test_every_code_has_a_page_of_its_own(api: TestClient) -> None:
    for code, kind in KINDS.items():
        answer = api.get(f"/problems/{code}")
        assert answer.status_code == 200
        assert kind.title in answer.text
    assert "LoRA" not in api.get("/problems/gated").text
    assert "gated" in api.get("/problems/gated").text
    assert api.get("/problems/nonsense").status_code == 404


@pytest.mark.parametrize("path", ["/livez", "/v1/jobs", "/v1/none", "/v1/jobs/x", "/metrics", "/"])
def test_every_answer_has_its_id_and_the_security_headers(client: TestClient, path: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "default-src 'self'" in CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_an_odd_request_id_is_replaced(client: TestClient) -> None:
    answer = client.get("/livez", headers={"X-Request-Id": "a b\t<script>"})
    assert answer.headers["x-request-id"].startswith("req_")


UNREADABLE = (
    b"{",
    b"\xff\xfe",
    b'{"recipe": NaN}',
    b'{"a": 1, "a": 2}',
    b"[" * 100_000,
    b'{"metadata": {"a": "\\u0000"}}',
    b'{"metadata": {"a": "\\ud800"}}',
    b'{"priority": 1e999}',
    b'{"priority": ' + b"9" * 5000 + b"}",
    '{"a": 1}'.encode("utf-16"),
    '{"a": 1}'.encode("utf-16-le"),
    '{"a": 1}'.encode("utf-32"),
)
READERS = (
    "/v1/jobs",
    "/v1/plans",
    "/v1/jobs/job_x/append",
    "/v1/jobs/job_x/trials/0/merge",
    "/v1/jobs/job_x/front/0/merge",
    "/v1/webhook-endpoints",
    "/v1/api-keys",
)


@pytest.mark.parametrize("path", READERS)
def test_what_cannot_be_read_is_malformed(api: TestClient, path: str) -> None:
    for body in UNREADABLE:
        answer = api.post(path, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed"), (body[:50], answer.text)


def test_a_body_too_large_is_refused_before_it_is_read_whole(api: TestClient, settings: Settings) -> None:
    declared = api.post("/v1/jobs", content=b"x" * (settings.max_body_bytes + 1))
    sent = 0

    def chunks() -> Any:
        nonlocal sent
        while sent < 4 * settings.max_body_bytes:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    streamed = api.post("/v1/jobs", content=chunks())
    for answer in (declared, streamed):
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("content_type", ["application/xml", "multipart/form-data; boundary=x", ""])
def test_another_content_type_is_refused(api: TestClient, content_type: str) -> None:
    for path in ("/v1/jobs", "/v1/plans", "/v1/webhook-endpoints", "/v1/datasets"):
        answer = api.post(path, content=json.dumps(ORDER).encode(), headers={"Content-Type": content_type})
        assert (answer.status_code, answer.json()["code"]) == (415, "media_type_unsupported"), path
        assert answer.headers["accept"]


def test_a_compressed_body_is_refused_as_that(api: TestClient) -> None:
    body = gzip.compress(json.dumps(ORDER).encode())
    kind = {"Content-Type": "application/json"}
    answer = api.post("/v1/plans", content=body, headers={**kind, "Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "media_type_unsupported")
    assert answer.headers["accept-encoding"] == "identity"
    plain = api.post("/v1/plans", content=b"{", headers={**kind, "Content-Encoding": "identity"})
    assert plain.status_code == 400


def test_a_wrong_method_says_which_are_right(api: TestClient) -> None:
    answer = api.put("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert api.delete("/v1/webhook-endpoints/we_x/test").headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("query", "pointer"), [("limit=0", "/limit"), ("limit=x", "/limit"), ("state=none", "/state/0")]
)
def test_a_wrong_parameter_is_named(api: TestClient, query: str, pointer: str) -> None:
    answer = api.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert (answer.json()["errors"][0]["in"], answer.json()["errors"][0]["pointer"]) == ("query", pointer)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_what_is_wrong_with_a_part_of_an_order_is_told_at_its_place(path: str, api: TestClient) -> None:
    hook, texts = {"url": "https://a.example"}, {"name": "a", "kind": "perplexity"}
    for wrong, pointer in (
        ({"webhook": {"url": "http://a.example"}}, "/webhook/url"),
        ({"webhook": hook | {"events": ["merge.exploded"]}}, "/webhook/events/0"),
        ({"webhook": hook | {"secret": "whsec_short"}}, "/webhook/secret"),
        ({"evaluate": {"sets": [texts | {"data": {"path": "nowhere.txt"}}]}}, "/evaluate/sets/0/data/path"),
        ({"evaluate": {"sets": [texts | {"data": {"dataset": "ds_x"}}]}}, "/evaluate/sets/0/data/dataset"),
    ):
        answer = api.post(path, json=ORDER | wrong)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text


@pytest.mark.parametrize("path", ["/v1/jobs/%00", "/v1/jobs?method=%00", "/v1/jobs?metadata[a]=%00"])
def test_a_nul_in_the_address_is_refused(api: TestClient, path: str) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


def test_what_nobody_foresaw_is_a_problem_without_details(api: TestClient, app: FastAPI) -> None:
    @app.get("/broken")
    def broken() -> None:
        raise KeyError("hf_canary")

    answer = api.get("/broken")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "hf_canary" not in answer.text


def test_answers_of_the_api_are_not_kept_by_caches(api: TestClient) -> None:
    assert api.get("/v1/jobs").headers["cache-control"] == "no-store"
