"""Calibration data from the order to the statistics: uploads and files of Hub datasets, through the API and
the worker on one database.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import create_app
from merge.learn.walk import Stage
from settings import Settings
from tests.factories import TEST_SECRET, make_key
from tests.worker.conftest import Floor, family_recipe
from tests.worker.test_measuring import dataset, measured, table

LINES = "".join(
    json.dumps({"text": f"Document {number} has these few words in it."}) + "\n" for number in range(9)
)
WHERE = {"Content-Type": "application/jsonl"}


class Desk:
    """The API as two tenants see it."""

    def __init__(self, client: TestClient, sessions: sessionmaker[Session]) -> None:
        self.client = client
        self.headers = {}
        for tenant in ("default", "other"):
            with sessions.begin() as session:
                _, secret = make_key(session, tenant)
            self.headers[tenant] = {"Authorization": f"Bearer {secret}"}

    def upload(self, tenant: str, content: str = LINES) -> str:
        answer = self.client.post(
            "/v1/datasets?name=texts.jsonl", content=content, headers=self.headers[tenant] | WHERE
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def post(self, tenant: str, path: str, order: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer = self.client.post(path, json=order, headers=self.headers[tenant])
        return answer.status_code, answer.json()

    def get(self, tenant: str, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(path, headers=self.headers[tenant]).json()
        return found


@pytest.fixture
def desk(floor: Floor, postgres_url: str, sessions: sessionmaker[Session]) -> Iterator[Desk]:
    """The API in front of the workshop: the same database, models, Hub and data folder."""
    settings = Settings(
        database_url=postgres_url,
        broker_url=None,
        secret_key=TEST_SECRET,
        data_dir=floor.folder / "data",
        model_roots=[floor.hub.store.root / "team"],
        hub_endpoint=floor.hub.url,
    )
    with TestClient(create_app(settings)) as client:
        yield Desk(client, sessions)


def order(data: Any) -> dict[str, Any]:
    steps = [{"method": "task_arithmetic"}, {"method": "aim"}]
    calibration = {"data": data, "documents": 4, "tokens": 32}
    models = {"base": "./base", "sources": ["./expert1", "./expert2"]}
    return {"recipe": family_recipe(**models, steps=steps, calibration=calibration)}


def test_an_upload_is_measured_on_once_and_found_again_by_its_tenant_alone(
    desk: Desk, floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = desk.upload("default")
    status, job = desk.post("default", "/v1/jobs", order({"dataset": name}))
    assert status == 202, job
    first = floor.run(job["id"])
    assert first.state == "succeeded", (first.error_code, first.error_detail, first.error_findings)
    (row,) = desk.get("default", "/v1/statistics")["data"]
    assert (row["data"], row["data_sha256"]) == (name, hashlib.sha256(LINES.encode()).hexdigest())
    assert row["tokens"] == 4 * 32
    report = desk.get("default", f"/v1/jobs/{job['id']}/report")
    (told,) = report["saliency"]
    assert (told["model"], told["kind"], len(told["layers"])) == ("base", "mean_abs_input", 12)
    assert {each["held_back"] < 1 for each in report["groups"][0]["cells"]} == {True}

    def never(*_: Any) -> None:
        raise AssertionError("a model was run again")

    monkeypatch.setattr(Stage, "fill", never)
    status, planned = desk.post("default", "/v1/plans", order({"dataset": name}))
    said = planned["plan"]["statistics"]
    assert (said["found"], said["missing"], said["seconds"]) == (["base"], [], 0)
    _, job = desk.post("default", "/v1/jobs", order({"dataset": name}))
    second = floor.run(job["id"])
    assert second.state == "succeeded", second.error_detail
    assert [each["found"] for each in measured(floor, second)] == [True]
    monkeypatch.undo()

    status, refused = desk.post("other", "/v1/jobs", order({"dataset": name}))
    assert (status, refused["errors"][0]["code"]) == (422, "calibration_missing")
    own = desk.upload("other")
    assert own != name
    _, planned = desk.post("other", "/v1/plans", order({"dataset": own}))
    assert planned["plan"]["statistics"]["missing"] == ["base"], "the same bytes, and another tenant's"
    assert desk.get("other", "/v1/statistics")["data"] == []


def test_the_same_bytes_uploaded_again_and_named_otherwise_are_the_same_data(
    desk: Desk, floor: Floor
) -> None:
    _, job = desk.post("default", "/v1/jobs", order({"dataset": desk.upload("default")}))
    assert floor.run(job["id"]).state == "succeeded"
    (floor.hub.store.root / "team" / "texts.jsonl").write_text(LINES)
    _, planned = desk.post("default", "/v1/plans", order({"path": "texts.jsonl"}))
    assert planned["plan"]["statistics"]["found"] == ["base"]


def test_an_upload_that_is_removed_before_its_job_runs_fails_the_job_by_name(
    desk: Desk, floor: Floor
) -> None:
    name = desk.upload("default")
    _, job = desk.post("default", "/v1/jobs", order({"dataset": name}))
    removed = desk.client.delete(f"/v1/datasets/{name}", headers=desk.headers["default"])
    assert removed.status_code == 204
    ended = floor.run(job["id"])
    assert ended.state == "failed"
    told = [ended.error_detail, *(each["message"] for each in ended.error_findings or ())]
    assert any(name in said for said in told), told


@pytest.mark.parametrize("name", ["lines.jsonl", "plain.txt", "table.parquet"])
def test_a_file_of_a_hub_dataset_is_pinned_when_it_is_ordered(desk: Desk, floor: Floor, name: str) -> None:
    texts = [f"Document {number} has these few words in it." for number in range(20)]
    dataset(
        floor,
        name,
        {
            "lines.jsonl": LINES.encode(),
            "plain.txt": "\n\n".join(texts).encode(),
            "table.parquet": table([*texts]),
        }[name],
    )
    status, job = desk.post("default", "/v1/jobs", order({"hub": "team/texts", "file": name}))
    assert status == 202, job
    commit = floor.hub.head("team/texts", "dataset")
    assert job["recipe"]["calibration"]["data"] == {
        "hub": f"team/texts@{commit}", "file": name, "dataset": None, "path": None
    }  # fmt: skip


def test_numbers_that_are_not_finite_end_the_job_with_the_name_of_the_module(
    desk: Desk, floor: Floor
) -> None:
    for file in (floor.hub.store.root / "team" / "base").glob("*.safetensors"):
        tensors = load_file(file)
        broken = tensors.get("model.layers.2.mlp.up_proj.weight")
        if broken is not None:
            broken[0, 0] = float("nan")
            save_file(tensors, file, {"format": "pt"})
    _, job = desk.post("default", "/v1/jobs", order("default"))
    ended = floor.run(job["id"])
    assert (ended.state, ended.error_code, ended.phase) == ("failed", "not_finite", "measuring")
    assert "model.layers.2" in str(ended.error_detail)
    assert desk.get("default", "/v1/statistics")["data"] == []
