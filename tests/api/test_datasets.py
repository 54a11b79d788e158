"""Uploaded texts: small, checked, kept once."""

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from settings import Settings
from tests.api.conftest import ORDER, Who

TEXT = {"Content-Type": "text/plain; charset=utf-8"}
LINES = {"Content-Type": "application/x-ndjson"}


def test_the_same_bytes_are_kept_once(api: TestClient) -> None:
    first = api.post("/v1/datasets?name=a.txt", content="some text", headers=TEXT)
    again = api.post("/v1/datasets?name=b.txt", content="some text", headers=TEXT)
    assert first.status_code == 201
    assert again.json() == first.json()
    assert (first.json()["name"], first.json()["size"]) == ("a.txt", 9)
    assert api.get(first.headers["location"]).json() == first.json()
    assert api.get("/v1/datasets").json()["data"] == [first.json()]


def test_an_upload_can_be_named_by_a_job_until_it_is_removed(api: TestClient) -> None:
    made = api.post("/v1/datasets", content='{"text": "a"}\n', headers=LINES).json()
    evaluate = {"sets": [{"name": "s", "kind": "perplexity", "data": {"dataset": made["id"]}}]}
    assert api.post("/v1/jobs", json=ORDER | {"evaluate": evaluate}).status_code == 202
    assert api.delete(f"/v1/datasets/{made['id']}").status_code == 204
    assert api.post("/v1/jobs", json=ORDER | {"evaluate": evaluate}).status_code == 422


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", TEXT),
        (b"\xff\xfe\x00", TEXT),
        (b"a\x00b", TEXT),
        (b"[1]\n", LINES),
        (b'{"a": 1}\n{"a": \n', LINES),
    ],
)
def test_what_is_no_text_is_refused(api: TestClient, body: bytes, headers: dict[str, str]) -> None:
    assert api.post("/v1/datasets", content=body, headers=headers).status_code in (400, 422)


def test_an_upload_may_be_larger_than_other_bodies_but_not_without_end(settings: Settings, anna: Who) -> None:
    changed = settings.model_copy(update={"max_body_bytes": 1000, "max_dataset_bytes": 5000})
    with TestClient(create_app(changed)) as client:
        client.headers.update(anna.headers)
        assert client.post("/v1/datasets", content=b"x" * 5000, headers=TEXT).status_code == 201
        assert client.post("/v1/datasets", content=b"x" * 5001, headers=TEXT).status_code == 413
        assert client.post("/v1/jobs", content=b"x" * 1001).status_code == 413
