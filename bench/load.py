"""How the API holds up under many callers: 200 clients, mixed reads and submits, on this machine alone.

``python -m bench.load`` starts an embedded PostgreSQL, Valkey and one API process in a temporary folder,
makes tiny models and one API key for each client, and lets every client send requests one after the other
with a pause between them (the *think time*: exponential, one second on average, as between the looks of
somebody who follows a job). Of 100 requests 70 read one job, 10 list jobs, 10 read events and 10 submit a
job; the first submit of each client warms the plan's cache and is not counted. The clients share the
machine's cores with the service and its database.

The bars: no 5xx, p99 of reading a job under 150 ms, of submitting under 300 ms. Exit code 1 when one is
missed.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from cli.embedded import start_postgres, start_valkey
from db import tokens
from db.session import make_engine, make_sessions
from jobs.keys import create_key
from migrations.run import upgrade

MIX = {"get": 70, "list": 10, "events": 10, "submit": 10}
BARS = {"get": 0.150, "submit": 0.300}
TENANTS = 20
WARMERS = 8
START_SECONDS = 60.0
HIDDEN, LAYERS, VOCAB = 16, 4, 64


@dataclass
class Tally:
    """Every latency in seconds by kind of request, and every status."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[int] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    left: int = 0
    seconds_taken: float = 0.0
    cpu_seconds: float = 0.0

    def worst(self, kind: str, share: float) -> float:
        """The quantile ``share`` of one kind's latencies."""
        ordered = sorted(self.seconds[kind])
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def write_model(folder: Path) -> None:
    """A Llama of some kilobytes, all zeros: only its header is ever read here."""
    shapes: dict[str, list[int]] = {
        "model.embed_tokens.weight": [VOCAB, HIDDEN],
        "model.norm.weight": [HIDDEN],
    }
    for layer in range(LAYERS):
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            shapes[f"model.layers.{layer}.{part}.weight"] = [HIDDEN, HIDDEN]
        for part in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"model.layers.{layer}.mlp.{part}.weight"] = [HIDDEN, HIDDEN]
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{part}.weight"] = [HIDDEN]
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(at))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


def make_keys(database_url: str, count: int) -> list[str]:
    """One API key for each client, spread over the tenants."""
    engine = make_engine(database_url, pool_size=1)
    try:
        with make_sessions(engine).begin() as session:
            tenants = [tokens.tenant_named(session, f"tenant {number}").id for number in range(TENANTS)]
            scopes = ["merges:read", "merges:write"]
            return [
                create_key(session, tenants[each % TENANTS], f"client {each}", scopes)[1]
                for each in range(count)
            ]
    finally:
        engine.dispose()


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, str, int]]:
    """A running service on this machine: its URL, its database's, and the API's process id."""
    with ExitStack() as stack:
        servers = []
        for start in (start_postgres, start_valkey):
            server = start(folder)
            stack.callback(server.stop)
            servers.append(server.url)
        upgrade(servers[0])
        models = folder / "models"
        for name in ("base", "one", "two"):
            write_model(models / name)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environment = os.environ | {
            "DATABASE_URL": servers[0],
            "BROKER_URL": servers[1],
            "MERGERY_DATA_DIR": str(folder / "data"),
            "MERGERY_MODEL_ROOTS": str(models),
            "MERGERY_PORT": str(port),
            "MERGERY_MAX_QUEUED_JOBS": "1000000",
            "MERGERY_LOG_LEVEL": "WARNING",
        }
        process = subprocess.Popen([sys.executable, "-m", "cli.main", "api"], env=environment)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url, servers[0], process.pid


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Returns when ``/readyz`` says so; stops the benchmark when the API ends or takes too long."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx2.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    sys.exit("the API did not start")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def order(number: int) -> dict[str, Any]:
    """A body for ``POST /v1/jobs``; all plan the same three models."""
    sources = [{"model": "one", "weight": 0.5}, {"model": "two", "weight": 0.5}]
    return {
        "recipe": {"base": "base", "sources": sources, "steps": [{"method": "linear"}]},
        "output": {"repo": f"load/merge-{number}"},
        "metadata": {"number": str(number)},
    }


async def client(
    http: httpx2.AsyncClient,
    key: str,
    job: str,
    tally: Tally,
    think: float,
    end: float,
    rng: random.Random,
) -> None:
    """One caller that has a job: one request after the other until time or count is up."""
    headers = {"Authorization": f"Bearer {key}"}
    kinds, weights = list(MIX), list(MIX.values())
    while time.monotonic() < end and tally.left > 0:
        await asyncio.sleep(rng.expovariate(1 / think) if think else 0)
        if time.monotonic() >= end:
            break
        tally.left -= 1
        kind = rng.choices(kinds, weights)[0]
        body = order(rng.randrange(10**9)) if kind == "submit" else None
        path = {"get": f"/v1/jobs/{job}", "list": "/v1/jobs?limit=20", "events": f"/v1/jobs/{job}/events"}
        started = time.perf_counter()
        try:
            if body is None:
                answer = await http.get(path[kind], headers=headers)
            else:
                answer = await http.post("/v1/jobs", json=body, headers=headers)
        except httpx2.TransportError as error:
            tally.broken[type(error).__name__] += 1
            continue
        tally.seconds[kind].append(time.perf_counter() - started)
        tally.statuses[answer.status_code] += 1
        if answer.status_code == 202:
            job = answer.json()["id"]


async def run(url: str, pid: int, keys: list[str], options: argparse.Namespace) -> Tally:
    """A job for each client, a few at a time; then all clients at once."""
    tally = Tally(left=options.requests)
    many = len(keys)
    limits = httpx2.Limits(max_connections=many, max_keepalive_connections=many, keepalive_expiry=3)
    few = asyncio.Semaphore(WARMERS)

    async def first_job(key: str) -> str:
        async with few:
            answer = await http.post("/v1/jobs", json=order(0), headers={"Authorization": f"Bearer {key}"})
            return str(answer.json()["id"])

    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=30) as http:
        jobs = await asyncio.gather(*(first_job(key) for key in keys))
        started, used = time.monotonic(), cpu_seconds(pid)
        end = started + options.seconds
        clients = [
            client(http, key, job, tally, options.think, end, random.Random(number))
            for number, (key, job) in enumerate(zip(keys, jobs, strict=True))
        ]
        await asyncio.gather(*clients)
    tally.seconds_taken = min(options.seconds, time.monotonic() - started)
    tally.cpu_seconds = cpu_seconds(pid) - used
    return tally


def report(tally: Tally) -> bool:
    """Prints the table; says whether every bar was met."""
    total = sum(tally.statuses.values())
    print(f"{'':8}{'requests':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'max ms':>10}   bar (p99)")
    met = True
    for kind in MIX:
        quantiles = [1000 * tally.worst(kind, share) for share in (0.5, 0.95, 0.99, 1.0)]
        bar = BARS.get(kind)
        ok = bar is None or tally.worst(kind, 0.99) < bar
        met &= ok
        said = f"{1000 * bar:.0f} ms {'met' if ok else 'MISSED'}" if bar else ""
        print(
            f"{kind:8}{len(tally.seconds[kind]):>10}" + "".join(f"{each:>10.1f}" for each in quantiles),
            " ",
            said,
        )
    failed = sum(count for status, count in tally.statuses.items() if status >= 500)
    statuses = dict(sorted(tally.statuses.items()))
    print(f"{total} requests, {total / tally.seconds_taken:.0f} a second; statuses {statuses}")
    print(f"CPU of the API process: {1000 * tally.cpu_seconds / max(1, total):.2f} ms a request")
    print(f"5xx: {failed}; broken connections: {dict(tally.broken) or 0}")
    return met and failed == 0 and not tally.broken and total > 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0, help="stop after so long (default 30)")
    parser.add_argument("--requests", type=int, default=50_000, help="stop after so many (default 50000)")
    parser.add_argument(
        "--think", type=float, default=1.0, help="mean pause of a client, seconds (default 1)"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mergery-load-"))
    folder.chmod(0o711)
    try:
        with service(folder) as (url, database_url, pid):
            keys = make_keys(database_url, options.clients)
            tally = asyncio.run(run(url, pid, keys, options))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{options.clients} clients, think time {options.think:g} s, {os.cpu_count()} cores")
    return 0 if report(tally) else 1


if __name__ == "__main__":
    sys.exit(main())
