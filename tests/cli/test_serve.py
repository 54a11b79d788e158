"""`mergery api` with several processes on one port."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from cli.serve import MOST_PROCESSES, count_processes
from settings import Settings
from tests.acceptance.stack import free_port
from tests.waiting import until


@contextmanager
def api(database_url: str, broker_url: str, data_dir: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "BROKER_URL": broker_url,
        "MERGERY_DATA_DIR": str(data_dir),
        "MERGERY_PORT": str(port),
        "MERGERY_API_PROCESSES": "2",
        "MERGERY_LOG_LEVEL": "ERROR",
    }
    process = subprocess.Popen([sys.executable, "-m", "cli.main", "api"], env=environment)
    try:
        until(lambda: answers(port) and len(psutil.Process(process.pid).children()) == 2, 40.0)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/livez", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def test_two_processes_share_a_port_add_up_their_numbers_and_end_with_their_parent(
    own_postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    port = free_port()
    with api(own_postgres_url, valkey_url, tmp_path, port) as process:
        children = psutil.Process(process.pid).children()
        for _ in range(40):
            assert answers(port)
        text = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        counted = re.search(r'http_request_seconds_count\{[^}]*route="/livez"[^}]*\} ([0-9.]+)', text)
        assert counted is not None and float(counted[1]) >= 40
        assert "merge_queue_age_seconds" in text
        children[0].kill()
        until(lambda: len(psutil.Process(process.pid).children()) == 2, 40.0)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_that_is_another_s_is_said_so(own_postgres_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = os.environ | {
            "DATABASE_URL": own_postgres_url,
            "MERGERY_DATA_DIR": str(tmp_path),
            "MERGERY_PORT": str(taken.getsockname()[1]),
            "MERGERY_API_PROCESSES": "2",
        }
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "api"], env=environment, capture_output=True, timeout=60
        )
    assert (done.returncode, b"in use" in done.stderr) == (2, True)


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_one_process_a_core_unless_told_otherwise(asked: int) -> None:
    count = count_processes(Settings(api_processes=asked))
    assert count == asked if asked else 1 <= count <= MOST_PROCESSES


@pytest.mark.parametrize(("host", "url"), [("10.0.0.1", "http://10.0.0.1:80"), ("::1", "http://[::1]:80")])
def test_links_name_the_address_that_is_listened_on(host: str, url: str) -> None:
    assert Settings(host=host, port=80, public_url=None).url == url
    assert Settings(public_url="https://m.example/").url == "https://m.example"
