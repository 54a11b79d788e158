"""Alive, ready, measured, described."""

import subprocess
import sys

import httpx2
from pydantic import SecretStr
from starlette.testclient import TestClient

from api import openapi
from api.app import create_app
from merge.evidence import evidence_line
from settings import Settings
from tests.api.conftest import ORDER, Who

BLOCKER = """
import sys

BLOCKED = ("torch", "transformers", "safetensors", "celery")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not installed in the API's image")

sys.meta_path.insert(0, Blocker())
from api.app import create_app
from settings import Settings

app = create_app(Settings(secret_key="x"))
assert "/v1/jobs" in app.openapi()["paths"]
assert not [name for name in sys.modules if name.split(".")[0] in BLOCKED]
"""


def test_the_api_starts_where_torch_is_not_installed() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_alive_and_ready(settings: Settings, valkey_url: str) -> None:
    with TestClient(create_app(settings.model_copy(update={"broker_url": valkey_url}))) as client:
        assert client.get("/livez").json() == {"status": "ok"}
        ready = client.get("/readyz")
    assert ready.status_code == 200, ready.text
    assert (ready.json()["database"], ready.json()["broker"]) == ("ok", "ok")


def test_not_ready_without_the_tables(settings: Settings, empty_postgres_url: str) -> None:
    with TestClient(create_app(settings.model_copy(update={"database_url": empty_postgres_url}))) as client:
        answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "revision" in answer.json()["detail"]


def test_alive_but_not_ready_without_a_database(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql+psycopg://127.0.0.1:9/none"})
    with TestClient(create_app(away)) as client:
        assert client.get("/livez").status_code == 200
        answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the database does not answer")


def test_metrics_name_routes_by_template_and_no_tenant(api: TestClient, anna: Who) -> None:
    job = api.post("/v1/jobs", json=ORDER).json()
    api.get(f"/v1/jobs/{job['id']}")
    api.get("/v1/nothing/here")
    text = api.get("/metrics").text
    assert 'merge_jobs_in_state{pool="cpu",state="queued"} 1.0' in text
    assert 'merge_queue_age_seconds{pool="cpu"}' in text
    assert 'route="/v1/jobs/{job_id}",status="200"' in text
    assert 'route="unmatched",status="404"' in text
    assert job["id"] not in text
    assert anna.caller.tenant_id not in text


def test_who_asks_for_the_head_alone_is_answered_as_for_the_whole(served: str, anna: Who) -> None:
    with httpx2.Client(base_url=served, headers=anna.headers) as client:
        for path in ("/livez", "/v1/jobs", "/methods", "/login", "/v1/jobs/job_x", "/static/app.css"):
            answer, whole = client.head(path), client.get(path)
            assert (answer.status_code, answer.content) == (whole.status_code, b""), path
            assert answer.headers["content-length"] == str(len(whole.content))
        assert 'method="HEAD",route="/livez",status="200"' in client.get("/metrics").text


def test_metrics_can_be_switched_off(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"metrics_enabled": False}))) as client:
        assert client.get("/metrics").status_code == 404


def test_the_committed_openapi_document_is_fresh() -> None:
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.text(), "run python -m api.openapi"


def test_the_document_can_be_kept_to_oneself(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        assert client.get("/openapi.json").json()["info"]["title"] == "Mergery"
    with TestClient(create_app(settings.model_copy(update={"docs_enabled": False}))) as client:
        assert client.get("/openapi.json").status_code == 404


def test_https_is_insisted_on_where_it_is_used(settings: Settings) -> None:
    secure = settings.model_copy(update={"public_url": "https://m.example", "secret_key": SecretStr("x")})
    app = create_app(secure)
    with TestClient(app) as client:
        assert "max-age" in client.get("/livez").headers["strict-transport-security"]
    assert app.state.desk.signer.cookie == "__Host-mergery"


def test_every_method_is_listed_with_the_schema_of_its_settings(api: TestClient) -> None:
    names = [each["name"] for each in api.get("/v1/methods").json()["data"]]
    assert "ties" in names
    for name in names:
        told = api.get(f"/v1/methods/{name}").json()
        assert told["settings"]["type"] == "object"
        assert all(told[what].endswith(".") for what in ("about", "use", "costs", "differs"))
    preset = api.get("/v1/methods/dare_ties").json()
    assert (preset["kind"], [step["method"] for step in preset["steps"]]) == ("preset", ["dare", "ties"])
    measured = api.get("/v1/methods/ties").json()["evidence"]
    assert measured == evidence_line("ties") and "Bench A" in measured and "averaging" in measured
    missing = api.get("/v1/methods/tise")
    assert missing.status_code == 404
    assert "ties" in missing.json()["detail"]
