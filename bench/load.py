"""How the API holds up under many callers: 200 clients, mixed reads and submits, on this machine alone.

``python -m bench.load`` starts an embedded PostgreSQL, Valkey and the API in a temporary folder, makes tiny
models and one API key for each client, and lets every client send requests one after the other over one kept
connection with a pause between them (the *think time*: exponential, one second on average, as between the
looks of somebody who follows a job; ``--think 0`` saturates). Of 100 requests 70 read one job, 10 list
jobs, 10 read events and 10 submit a job; the first submit of each client is not counted. Clients, database
and broker share the machine's cores with the API; the table says what each of them cost.

The bars: no 5xx, p99 of reading a job under 150 ms, of submitting under 300 ms. Exit code 1 when one is
missed (with think time 0 there are no bars but no 5xx: what is then measured is the machine).
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.stand import Stand, stand
from bench.wire import Broken, Wire, message
from db import tokens
from db.session import make_engine, make_sessions
from jobs.keys import create_key

MIX = {"get": 70, "list": 10, "events": 10, "submit": 10}
BARS = {"get": 0.150, "submit": 0.300}
TENANTS = 20
WARMERS = 8


@dataclass
class Tally:
    """Every latency in seconds by kind of request, every status, and the CPU time of each part."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[int] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    left: int = 0
    seconds_taken: float = 0.0
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    def worst(self, kind: str, share: float) -> float:
        """The quantile ``share`` of one kind's latencies."""
        ordered = sorted(self.seconds[kind])
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass(frozen=True)
class Caller:
    """One client: its connection, its key, its own chance."""

    wire: Wire
    key: str
    host: str
    rng: random.Random

    async def read(self, path: str) -> tuple[int, bytes]:
        """A GET."""
        return await self.wire.ask(message("GET", path, self.host, self.key))

    async def submit(self) -> tuple[int, bytes]:
        """A POST of a job; all of them plan the same three models."""
        body = json.dumps(order(self.rng.randrange(10**9))).encode()
        return await self.wire.ask(message("POST", "/v1/jobs", self.host, self.key, body))


def order(number: int) -> dict[str, Any]:
    """A body for ``POST /v1/jobs``."""
    sources = [{"model": "one", "weight": 0.5}, {"model": "two", "weight": 0.5}]
    return {
        "recipe": {"base": "base", "sources": sources, "steps": [{"method": "linear"}]},
        "output": {"repo": f"load/merge-{number}"},
        "metadata": {"number": str(number)},
    }


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


async def client(caller: Caller, job: str, tally: Tally, think: float, end: float) -> None:
    """One caller that has a job: one request after the other until time or count is up."""
    kinds, weights = list(MIX), list(MIX.values())
    while time.monotonic() < end and tally.left > 0:
        await asyncio.sleep(caller.rng.expovariate(1 / think) if think else 0)
        if time.monotonic() >= end:
            break
        tally.left -= 1
        kind = caller.rng.choices(kinds, weights)[0]
        paths = {"get": f"/v1/jobs/{job}", "list": "/v1/jobs?limit=20", "events": f"/v1/jobs/{job}/events"}
        started = time.perf_counter()
        try:
            status, body = await (caller.submit() if kind == "submit" else caller.read(paths[kind]))
        except (Broken, OSError) as error:
            tally.broken[type(error).__name__] += 1
            continue
        tally.seconds[kind].append(time.perf_counter() - started)
        tally.statuses[status] += 1
        if status == 202:
            job = json.loads(body)["id"]


async def run(target: Stand, keys: list[str], options: argparse.Namespace) -> Tally:
    """A job for each client, a few at a time; then all clients at once."""
    tally = Tally(left=options.requests)
    few = asyncio.Semaphore(WARMERS)

    async def first_job(caller: Caller) -> str:
        async with few:
            return str(json.loads((await caller.submit())[1])["id"])

    async with AsyncExitStack() as stack:
        callers = []
        for number, key in enumerate(keys):
            wire = await stack.enter_async_context(Wire(target.host, target.port))
            callers.append(Caller(wire, key, f"{target.host}:{target.port}", random.Random(number)))
        jobs = await asyncio.gather(*(first_job(each) for each in callers))
        started, used = time.monotonic(), target.cpu_seconds()
        end = started + options.seconds
        await asyncio.gather(
            *(client(each, job, tally, options.think, end) for each, job in zip(callers, jobs, strict=True))
        )
        tally.seconds_taken = min(options.seconds, time.monotonic() - started)
        tally.cpu_seconds = {name: each - used[name] for name, each in target.cpu_seconds().items()}
    return tally


def report(tally: Tally, *, with_bars: bool) -> bool:
    """Prints the table; says whether every bar was met."""
    total = sum(tally.statuses.values())
    print(f"{'':8}{'requests':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'max ms':>10}   bar (p99)")
    met = True
    for kind in MIX:
        quantiles = [1000 * tally.worst(kind, share) for share in (0.5, 0.95, 0.99, 1.0)]
        bar = BARS.get(kind) if with_bars else None
        ok = bar is None or tally.worst(kind, 0.99) < bar
        met &= ok
        said = f"{1000 * bar:.0f} ms {'met' if ok else 'MISSED'}" if bar else ""
        print(
            f"{kind:8}{len(tally.seconds[kind]):>10}" + "".join(f"{each:>10.1f}" for each in quantiles),
            end="",
        )
        print("  ", said)
    failed = sum(count for status, count in tally.statuses.items() if status >= 500)
    statuses = dict(sorted(tally.statuses.items()))
    print(f"{total} requests, {total / tally.seconds_taken:.0f} a second; statuses {statuses}")
    costs = {name: 1000 * each / max(1, total) for name, each in tally.cpu_seconds.items()}
    print("CPU ms a request: " + ", ".join(f"{name} {each:.2f}" for name, each in costs.items()))
    print(f"5xx: {failed}; broken connections: {dict(tally.broken) or 0}")
    return met and failed == 0 and not tally.broken and total > 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--processes", type=int, default=0, help="of the API (default: one a core)")
    parser.add_argument("--seconds", type=float, default=30.0, help="stop after so long (default 30)")
    parser.add_argument("--requests", type=int, default=50_000, help="stop after so many (default 50000)")
    parser.add_argument(
        "--think", type=float, default=1.0, help="mean pause of a client, seconds (default 1)"
    )
    options = parser.parse_args()
    with stand(options.processes) as target:
        keys = make_keys(target.database_url, options.clients)
        tally = asyncio.run(run(target, keys, options))
    load = os.getloadavg()[0]
    print(
        f"{options.clients} clients, think time {options.think:g} s, {os.cpu_count()} cores, load {load:.1f}"
    )
    return 0 if report(tally, with_bars=options.think > 0) else 1


if __name__ == "__main__":
    sys.exit(main())
