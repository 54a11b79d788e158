"""Statistics on data through the API: planned, listed, and wrong data refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import create_app
from db import statistics
from settings import Settings
from tests.api.conftest import Who

AIM: dict[str, Any] = {
    "base": "base",
    "sources": ["expert1", "expert2"],
    "steps": [{"method": "linear"}, {"method": "aim"}],
}


def aim(data: Any = "default", **calibration: Any) -> dict[str, Any]:
    return {"recipe": {**AIM, "calibration": {"data": data, **calibration}}}


def facts(digest: str, **changes: Any) -> dict[str, Any]:
    return {
        "kinds": ["mean_abs_input"],
        "model": "org/base@" + "0" * 40,
        "model_sha256": "m" * 64,
        "stamp": None,
        "data": "default",
        "data_sha256": "d" * 64,
        "tokens": 131072,
        "size": 1000,
        "manifest": {"digest": digest, "dead_channels": {"a.weight": 1}},
        **changes,
    }


def refusal(api: TestClient, order: dict[str, Any], path: str = "/v1/jobs") -> tuple[str, str]:
    answer = api.post(path, json=order)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    return error["pointer"], error["code"]


def test_a_plan_states_what_measuring_takes(api: TestClient) -> None:
    plain = api.post("/v1/plans", json={"recipe": {**AIM, "steps": [{"method": "linear"}]}}).json()
    told = api.post("/v1/plans", json=aim()).json()
    said = told["plan"]["statistics"]
    assert said["needed"] == {"base": ["mean_abs_input"]}
    assert (said["missing"], said["found"], said["passes"]) == (["base"], [], 1)
    assert said["data"] == {"base": "default"} and said["tokens"] == 256 * 512
    assert said["seconds"] > 0 and said["memory_bytes"] > 0
    assert told["plan"]["estimate"]["seconds"] >= plain["plan"]["estimate"]["seconds"] + said["seconds"] - 0.2
    assert plain["plan"]["statistics"] is None
    assert told["queue"] == told["plan"]["queue"] == "cpu"


def test_large_statistics_go_to_the_gpu_queue_where_the_operator_has_one(
    settings: Settings, anna: Who
) -> None:
    changed = settings.model_copy(update={"gpu_measuring_seconds": 1e-3})
    with TestClient(create_app(changed), headers=anna.headers) as client:
        assert client.post("/v1/plans", json=aim()).json()["queue"] == "gpu"
        job = client.post("/v1/jobs", json=aim()).json()
        assert job["queue"] == "gpu"
        assert client.post("/v1/plans", json={"recipe": {**AIM, "steps": AIM["steps"][:1]}}).json()[
            "queue"
        ] == ("cpu")


def test_data_is_looked_at_before_a_job_is_accepted(api: TestClient, model_root: Path) -> None:
    folder = model_root / "texts"
    folder.mkdir(exist_ok=True)
    (folder / "good.txt").write_text("One document.\n\nAnd a second one of some words.\n")
    (folder / "latin.txt").write_bytes("naïve\n".encode("latin-1"))
    (folder / "white.jsonl").write_text('{"text": "  "}\n')
    (folder / "other.jsonl").write_text('{"words": "x"}\n')
    (folder / "empty.txt").touch()
    (folder / "fake.parquet").write_bytes(b"not at all")
    (folder / "table.csv").write_text("text\nx\n")
    at = "/recipe/calibration/data"
    assert api.post("/v1/jobs", json=aim({"path": "texts/good.txt"})).status_code == 202
    for name, code in {
        "latin.txt": "calibration_encoding",
        "white.jsonl": "calibration_empty",
        "other.jsonl": "calibration_format",
        "empty.txt": "calibration_empty",
        "fake.parquet": "calibration_format",
        "table.csv": "calibration_format",
        "nowhere.txt": "calibration_missing",
        "../../outside.txt": "calibration_missing",
    }.items():
        assert refusal(api, aim({"path": f"texts/{name}"})) == (at, code), name
        assert refusal(api, aim({"path": f"texts/{name}"}), "/v1/plans") == (at, code), name
    bound = aim(by_source={"m1": {"path": "texts/latin.txt"}})
    assert refusal(api, bound) == ("/recipe/calibration/by_source/m1", "calibration_encoding")
    assert refusal(api, aim(by_source={"nobody": "default"}))[0].startswith("/recipe/calibration/by_source")


def test_a_file_above_the_limit_is_refused(settings: Settings, anna: Who, model_root: Path) -> None:
    (model_root / "long.txt").write_text("word " * 300)
    changed = settings.model_copy(update={"max_calibration_bytes": 1000})
    with TestClient(create_app(changed), headers=anna.headers) as client:
        at = "/recipe/calibration/data"
        assert refusal(client, aim({"path": "long.txt"})) == (at, "calibration_too_large")


def test_an_upload_is_bound_by_its_id_and_only_to_its_tenant(
    client: TestClient, anna: Who, bert: Who
) -> None:
    text = {"Content-Type": "text/plain"}
    made = client.post(
        "/v1/datasets", content="Some words for a model to be run on.", headers=anna.headers | text
    ).json()
    order = aim({"dataset": made["id"]})
    assert client.post("/v1/jobs", json=order, headers=anna.headers).status_code == 202
    answer = client.post("/v1/jobs", json=order, headers=bert.headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == "calibration_missing"


@pytest.fixture
def three(sessions: sessionmaker[Session], anna: Who) -> list[str]:
    """Digests of three statistics of Anna's, newest first."""
    digests = [letter * 64 for letter in "abc"]
    for digest in digests:
        with sessions.begin() as session:
            statistics.put(session, anna.caller.tenant_id, digest, facts(digest))
    return digests[::-1]


def test_statistics_are_listed_page_by_page_and_told_one_by_one(api: TestClient, three: list[str]) -> None:
    first = api.get("/v1/statistics?limit=2")
    page = first.json()
    assert [row["digest"] for row in page["data"]] == three[:2] and page["has_more"]
    rest = api.get("/v1/statistics", params={"limit": 2, "cursor": page["next_cursor"]}).json()
    assert [row["digest"] for row in rest["data"]] == three[2:] and not rest["has_more"]
    assert "manifest" not in page["data"][0]
    one = api.get(f"/v1/statistics/{three[0]}").json()
    assert one["manifest"]["dead_channels"] == {"a.weight": 1}
    assert {**page["data"][0], "manifest": one["manifest"]} == one


def test_statistics_are_their_tenants_alone(client: TestClient, bert: Who, three: list[str]) -> None:
    assert client.get("/v1/statistics", headers=bert.headers).json()["data"] == []
    assert client.get(f"/v1/statistics/{three[0]}", headers=bert.headers).status_code == 404
