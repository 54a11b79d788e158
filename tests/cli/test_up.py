"""`mergery up` in an empty folder: real servers, one key, revived parts, a clean end."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cli.embedded import EmbeddedServerError, Server, start_postgres
from cli.main import build_parser
from cli.up import URL_FILE, Guard, up
from settings import Settings
from tests.acceptance.stack import free_port, wait_for
from tests.services import FAST

ROOT = Path(__file__).resolve().parents[2]


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def service(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("MERGERY_", "DATABASE_", "BROKER_"))
    }
    command = [
        sys.executable,
        "-m",
        "cli.main",
        "up",
        "--data-dir",
        str(folder / "data"),
        "--port",
        str(port),
    ]
    with (folder / "out.txt").open("ab") as out, (folder / "err.txt").open("ab") as err:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=err)
    try:
        wait_for(lambda: is_ready(port) or process.poll() is not None, "the API is ready")
        assert process.poll() is None, (folder / "err.txt").read_text()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0


def dispatcher_of(process: subprocess.Popen[bytes]) -> psutil.Process | None:
    for child in psutil.Process(process.pid).children():
        if "dispatcher" in child.cmdline():
            return child
    return None


def test_it_prints_one_key_revives_what_dies_and_ends_cleanly(folder: Path) -> None:
    port = free_port()
    with service(folder, port) as process:
        wait_for(lambda: dispatcher_of(process), "a dispatcher runs")
        first = dispatcher_of(process)
        assert first is not None
        first.kill()
        second = [sys.executable, "-m", "cli.main", "up", "--data-dir", str(folder / "data")]
        refused = subprocess.run(second, cwd=ROOT, capture_output=True, text=True)
        assert refused.returncode == 2
        assert "already runs" in refused.stderr
        wait_for(
            lambda: (now := dispatcher_of(process)) is not None and now.pid != first.pid,
            "the dispatcher is back",
        )
    first_run = (folder / "out.txt").read_text()
    assert first_run.count("mk_live_") == 1
    assert not is_ready(port)
    with service(folder, port):
        pass
    assert (folder / "out.txt").read_text().count("mk_live_") == 1


def test_a_start_that_fails_leaves_no_server_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_url: str) -> None:
        raise RuntimeError("no such revision")

    monkeypatch.setattr("cli.up.upgrade", refuses)
    monkeypatch.setattr("cli.up.start_valkey", lambda _folder: Server("valkey", "", folder, folder))
    started: list[Server] = []

    def start(data: Path) -> Server:
        started.append(start_postgres(data, FAST))
        return started[0]

    monkeypatch.setattr("cli.up.start_postgres", start)
    settings = Settings(data_dir=folder / "data", database_url=None, broker_url=None)
    with pytest.raises(RuntimeError, match="no such revision"):
        up(settings, build_parser().parse_args(["up"]))
    assert started[0].pid is None and not (folder / "data" / URL_FILE).exists()


def test_who_is_told_to_end_while_a_server_starts_stops_it_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(Server, "stop", lambda server: stopped.append(server.name))

    def start(data: Path) -> Server:
        os.kill(os.getpid(), signal.SIGTERM)
        return Server("postgres", "", data, data)

    monkeypatch.setattr("cli.up.start_postgres", start)
    monkeypatch.setattr("cli.up.start_valkey", lambda data: Server("valkey", "", data, data))
    settings = Settings(data_dir=folder / "data", database_url=None, broker_url=None)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # without ours the tests would end
    try:
        with pytest.raises(KeyboardInterrupt):
            up(settings, build_parser().parse_args(["up"]))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped == ["postgres"]


def test_a_server_that_cannot_be_revived_yet_is_tried_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = Server("valkey", "redis://127.0.0.1:1/0", folder, folder / "log")
    moved = Server("valkey", "redis://127.0.0.1:2/0", folder, folder / "log")
    answers: list[Server | None] = [None, moved]

    def start(_folder: Path) -> Server:
        answer = answers.pop(0)
        if answer is None:
            raise EmbeddedServerError("no room")
        return answer

    guard = Guard(folder, [dead], [start])
    assert guard.look() == {} and "no room" in capsys.readouterr().err
    assert guard.look() == {"BROKER_URL": moved.url}
