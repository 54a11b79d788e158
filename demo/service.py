"""The service as a child process, and a small client of its REST interface."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from demo.errors import DemoFailed

START_SECONDS, STOP_SECONDS = 180.0, 90.0
NDJSON = {"Content-Type": "application/x-ndjson"}
SERVERS = ("DATABASE_URL", "BROKER_URL", "MERGERY_DATABASE_URL", "MERGERY_BROKER_URL")
"""Where the caller keeps servers of their own, which are none of the demo's business."""


def free_port(preferred: int) -> int:
    """``preferred`` if nothing listens there, else a port the system picks."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Api:
    """Calls on ``/v1`` with a key; any answer but success ends the demo with its problem's words."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=60, headers=headers)

    def get(self, path: str) -> Any:
        """A resource."""
        return self._answer("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """A new resource, from JSON."""
        return self._answer("POST", path, json=body)

    def upload(self, name: str, content: bytes) -> str:
        """Id of an evaluation set made from ``content``."""
        query = {"name": name}
        return str(self._answer("POST", "/v1/datasets", params=query, content=content, headers=NDJSON)["id"])

    def accepts_key(self) -> bool:
        """Whether the service knows the key."""
        return self._http.get("/v1/limits").status_code == httpx.codes.OK

    def is_ready(self) -> bool:
        """Whether the service takes orders."""
        try:
            return self._http.get("/readyz", timeout=5).status_code == httpx.codes.OK
        except (httpx.NetworkError, httpx.TimeoutException):
            return False

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise DemoFailed(f"{method} {path} got no answer from {self.url}: {error}") from error
        if response.is_success:
            return response.json()
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        words = [problem.get("detail") or problem.get("title") or response.text[:300]]
        words += [error["detail"] for error in problem.get("errors") or [] if error.get("detail") != words[0]]
        raise DemoFailed(f"{method} {path} answered {response.status_code}: {'; '.join(words)}")


@contextmanager
def running(data: Path, port: int, environment: Mapping[str, str]) -> Iterator[Api]:
    """``mergery up`` on ``data`` while the block runs; gives a client with an admin key of its own."""
    data.mkdir(parents=True, exist_ok=True)
    log = data / "service.log"
    own = {name: value for name, value in os.environ.items() if name not in SERVERS}
    surroundings = {**own, **environment, "MERGERY_DATA_DIR": str(data)}
    # A session of its own, so that Ctrl-C reaches this process alone, which then stops the service in order.
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "up", "--data-dir", str(data), "--port", str(port)],
            env=surroundings,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url, log)
        api = Api(url, _key(url, data, surroundings))
        try:
            yield api
        finally:
            api.close()
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Asks the service to stop and waits; a service that does not is killed with all its processes."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    probe, deadline = Api(url), time.monotonic() + START_SECONDS
    try:
        while not probe.is_ready():
            if process.poll() is not None:
                raise DemoFailed(f"the service ended with exit code {process.returncode}: {tail(log)}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"the service was not ready after {START_SECONDS:.0f} s: {tail(log)}")
            time.sleep(0.1)
    finally:
        probe.close()


def tail(log: Path) -> str:
    """The last line of a log that is not empty, and where the rest is."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it said nothing'} (all of it: {log})"


def _key(url: str, data: Path, environment: Mapping[str, str]) -> str:
    """The demo's API key: the one kept from an earlier run if it still opens the door, else a new one."""
    file = data / "demo.key"
    if file.exists():
        api = Api(url, file.read_text().strip())
        try:
            if api.accepts_key():
                return file.read_text().strip()
        finally:
            api.close()
    command = [sys.executable, "-m", "cli.main", "keys", "create", "--name", "demo"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise DemoFailed(f"no API key could be made: {made.stderr.strip()}")
    file.touch(mode=0o600)
    file.write_text(made.stdout.strip())
    return file.read_text()
