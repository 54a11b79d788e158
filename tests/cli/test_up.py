"""`mergery up` in an empty folder: real servers, one key, revived parts, a clean end."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def wait_for(found: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


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


def test_it_prints_one_key_revives_what_dies_and_ends_cleanly(tmp_path: Path) -> None:
    port = free_port()
    with service(tmp_path, port) as process:
        wait_for(lambda: dispatcher_of(process), "a dispatcher runs")
        first = dispatcher_of(process)
        assert first is not None
        first.kill()
        second = [sys.executable, "-m", "cli.main", "up", "--data-dir", str(tmp_path / "data")]
        refused = subprocess.run(second, cwd=ROOT, capture_output=True, text=True)
        assert refused.returncode == 2
        assert "already runs" in refused.stderr
        wait_for(
            lambda: (now := dispatcher_of(process)) is not None and now.pid != first.pid,
            "the dispatcher is back",
        )
    first_run = (tmp_path / "out.txt").read_text()
    assert first_run.count("mk_live_") == 1
    assert not is_ready(port)
    with service(tmp_path, port):
        pass
    assert (tmp_path / "out.txt").read_text().count("mk_live_") == 1
