"""The Celery app, and how its children learn their settings."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from celery import Celery

from settings import Settings
from worker.app import announce, check_health, database_of, export, library_environment, lying, make_app
from worker.board import Board, health_path
from worker.errors import SettingMissing


def test_a_message_carries_the_jobs_id_and_nothing_else(valkey_url: str) -> None:
    app = make_app(Settings(broker_url=valkey_url, secret_key="s3cret-s3cret-s3cret"))
    with app.connection_for_write() as connection:
        announce(app, "job_1", "gpu", connection)
    with redis.Redis.from_url(valkey_url) as broker:
        assert broker.llen("cpu") == 0
        (raw,) = broker.lrange("gpu", 0, -1)
    message = json.loads(raw)
    arguments, named, _ = json.loads(base64.b64decode(message["body"]))
    assert (arguments, named) == (["job_1"], {})
    assert message["headers"]["task"] == "mergery.run_job"
    assert "s3cret" not in raw.decode()


def test_messages_that_no_worker_has_taken_are_counted(valkey_url: str) -> None:
    app = make_app(Settings(broker_url=valkey_url))
    for number in range(3):
        announce(app, f"job_{number}", "gpu")
    assert (lying(app, "gpu"), lying(app, "cpu")) == (3, 0)
    app.pool.force_close_all()


@pytest.fixture
def app() -> Celery:
    return make_app(Settings(broker_url="redis://127.0.0.1:1/0", job_timeout_seconds=50_000))


def test_no_broker_setting_is_relied_on_for_recovery(app: Celery) -> None:
    assert app.conf.visibility_timeout >= 2 * app.conf.task_time_limit > 2 * 50_000
    assert app.conf.broker_transport_options["visibility_timeout"] == app.conf.visibility_timeout
    assert app.conf.task_acks_late and app.conf.task_reject_on_worker_lost
    assert app.conf.task_ignore_result and app.conf.result_backend is None
    assert not app.conf.worker_cancel_long_running_tasks_on_connection_loss


def test_children_are_fresh_interpreters_and_messages_are_json(app: Celery) -> None:
    assert app.conf.worker_pool_start_method == "spawn"
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.accept_content == ["json"] and app.conf.task_serializer == "json"
    assert set(app.amqp.queues) == {"cpu", "gpu"} and not app.conf.task_create_missing_queues


def test_a_process_without_its_servers_says_which_setting_is_missing() -> None:
    with pytest.raises(SettingMissing, match="BROKER_URL"):
        make_app(Settings(broker_url=None))
    with pytest.raises(SettingMissing, match="DATABASE_URL"):
        database_of(Settings(database_url=None))


def test_children_read_the_settings_of_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings(
        database_url="postgresql+psycopg://host/db",
        secret_key="a secret",
        data_dir=tmp_path,
        model_roots=[tmp_path / "a", tmp_path / "b"],
        webhook_retry_seconds=[0, 1.5],
        webhook_allow_networks=["10.0.0.0/8"],
        webhook_allow_http=True,
        lease_seconds=7,
    )
    environment: dict[str, str] = {}
    export(given, environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings().model_dump() == given.model_dump()


def test_the_hubs_client_keeps_to_the_work_disk_and_to_the_jobs_token(tmp_path: Path) -> None:
    code = (
        "from huggingface_hub import constants as c\nfrom huggingface_hub.utils import build_hf_headers\n"
        "print(c.HF_HOME, c.HF_HUB_CACHE, c.HF_XET_CACHE, 'authorization' in build_hf_headers(), sep='|')"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HF_TOKEN": "hf_operatorsowntoken",
        **library_environment(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    *folders, authorized = done.stdout.strip().split("|")
    assert all(Path(folder).is_relative_to(tmp_path) for folder in folders)
    assert authorized == "False"


def test_health_is_an_exit_code(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert check_health(settings) == 1
    Board.create(settings.scratch)
    health_path(settings.scratch).touch()
    assert check_health(settings) == 0
