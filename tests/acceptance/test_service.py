"""From POST to a pushed model and a verified webhook, through the real processes."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import redis
from standardwebhooks import Webhook

from hub.folder_faults import Fault
from jobs.signing import new_secret
from merge.checkpoint.index import index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run as run_merge
from tests.acceptance.conftest import TOKEN, Service, model_texts
from tests.acceptance.stack import Inbox, wait_for
from tests.worker.conftest import family_recipe as recipe


def order(service: Service, repo: str | None, **fields: Any) -> dict[str, Any]:
    output = {"repo": repo} if repo else {}
    return {"recipe": recipe(), "output": output, "hub_credential": service.credential, **fields}


def undisturbed(service: Service, folder: Path) -> dict[str, bytes]:
    """What the engine alone makes of the recipe."""
    root = service.hub.store.root
    folders = {"base": root / "team/base", "a": root / "team/expert1", "b": root / "team/expert2"}
    models = {key: index_folder(path, key) for key, path in folders.items()}
    plan = make_plan(recipe_from(recipe()), models, budget=1 << 30)
    run_merge(plan, folders, folder / "undisturbed", budget_bytes=1 << 30, threads=1)
    return model_texts(folder / "undisturbed")


def shards_written(service: Service, job_id: str) -> list[str]:
    """Names of the shards that were written, once for each time."""
    events = [event["data"] for event in service.stack.events(job_id) if event["type"] == "merge.artifact"]
    return [event["uri"] for event in events if event["kind"] == "shard"]


def test_a_job_ends_as_a_pushed_model_and_a_webhook_that_the_reference_library_accepts(
    service: Service, tmp_path: Path
) -> None:
    secret = new_secret()
    with Inbox(refuse=1).serve() as inbox:
        webhook = {"url": inbox.url, "secret": secret, "events": ["*"]}
        accepted = service.stack.submit(order(service, "team/pushed", webhook=webhook))
        assert accepted["state"] == "queued" and accepted["plan"]
        job = service.stack.wait(accepted["id"], "succeeded")
        wait_for(lambda: inbox.of_type("merge.succeeded"), "the webhook arrives")
        wait_for(lambda: len(inbox.received) > len(inbox.ids()), "the refused webhook is tried again")
    assert job["result"]["repo"] == "team/pushed"
    assert job["result"]["commit"] == service.hub.head("team/pushed")
    for name, content in undisturbed(service, tmp_path).items():
        assert service.read("team/pushed", name) == content, name
    told = [Webhook(secret).verify(body, headers) for headers, body in inbox.received]
    assert {"merge.queued", "merge.started", "merge.succeeded"} <= {each["type"] for each in told}
    assert len(inbox.received) == len(inbox.ids()) + 1
    ended = next(each for each in told if each["type"] == "merge.succeeded")
    assert ended["data"]["id"] == job["id"] and ended["data"]["state"] == "succeeded"


def slow_weights(service: Service) -> None:
    """The second half of every model comes late, so that merges wait in their middle."""
    path = "model-00002-of-00002.safetensors"
    service.hub.faults.add("get", Fault(delay=2.0), path=path, times=1000)


def test_cancel_stops_the_merge_between_shards_and_retry_goes_on_from_them(
    service: Service, tmp_path: Path
) -> None:
    slow_weights(service)
    job_id = service.stack.submit(order(service, "team/retried"))["id"]
    wait_for(lambda: shards_written(service, job_id), "a shard is written")
    asked = time.monotonic()
    assert service.stack.call("POST", f"/v1/jobs/{job_id}/cancel").status_code == 202
    service.stack.wait(job_id, "cancelled")
    assert time.monotonic() - asked < 10
    assert not (service.hub.store.root / "team/retried" / "mergery.json").exists()
    service.hub.faults.clear()
    again = service.stack.call("POST", f"/v1/jobs/{job_id}/retry")
    assert again.status_code == 202, again.text
    retried = again.json()["id"]
    service.stack.wait(retried, "succeeded")
    first, second = shards_written(service, job_id), shards_written(service, retried)
    assert first and second and not set(first) & set(second)
    for name, content in undisturbed(service, tmp_path).items():
        assert service.read("team/retried", name) == content, name


def test_a_worker_that_is_told_to_stop_hands_its_job_to_the_next(service: Service, tmp_path: Path) -> None:
    slow_weights(service)
    job_id = service.stack.submit(order(service, "team/handed-over"))["id"]
    wait_for(lambda: shards_written(service, job_id), "a shard is written")
    for number in (signal.SIGTERM, signal.SIGQUIT):
        asked = time.monotonic()
        os.kill(service.stack.worker.pid, number)
        assert service.stack.worker.handle is not None
        assert service.stack.worker.handle.wait(25) == 0
        assert time.monotonic() - asked < 20
        assert service.stack.wait(job_id, "queued")["attempt"] >= 1
        service.stack.worker.start()
        service.stack.wait(job_id, "running")
    service.hub.faults.clear()
    job = service.stack.wait(job_id, "succeeded")
    assert job["max_attempts"] - job["attempt"] == 2
    written = shards_written(service, job_id)
    assert len(written) == len(set(written))
    for name, content in undisturbed(service, tmp_path).items():
        assert service.read("team/handed-over", name) == content, name


def test_a_refused_job_is_answered_at_once_with_its_findings(service: Service) -> None:
    wrong = order(service, "team/never")
    wrong["recipe"] = recipe(
        sources=[{"id": "a", "model": "team/none"}, {"id": "b", "model": "team/expert2"}]
    )
    answer = service.stack.call("POST", "/v1/jobs", json=wrong)
    assert answer.status_code == 422
    assert "repo_not_found" in json.dumps(answer.json())


def test_the_hubs_token_is_in_no_log_message_or_row(service: Service) -> None:
    texts = service.stack.log_texts()
    assert "job_claimed" in texts and "webhook_tried" in texts
    assert TOKEN not in texts
    with redis.Redis.from_url(service.stack.broker_url) as broker:
        for key in broker.scan_iter():
            kind = broker.type(key)
            dump = broker.dump(key) or b""
            assert TOKEN.encode() not in dump, (key, kind)
    url = service.stack.database_url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        ).fetchall()
        for (table,) in tables:
            rows = connection.execute(f"SELECT t::text FROM {table} t".encode()).fetchall()
            assert not any(TOKEN in str(row) for row in rows), table


def test_a_healthy_worker_says_so(service: Service) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "cli.main", "worker", "--health"]

    def ask() -> int:
        return subprocess.run(command, env=service.stack.environment, check=False).returncode

    assert wait_for(lambda: ask() == 0, "the worker is healthy", 20)


def test_every_log_line_of_the_service_is_json(service: Service) -> None:
    for name in ("worker", "dispatcher"):
        lines = (service.stack.folder / f"{name}.log").read_text().splitlines()
        assert lines
        for line in lines:
            assert json.loads(line)["event"], line
