"""The crash test: processes are killed at random moments of a run; nothing may be lost or done twice.

``python -m tests.acceptance.chaos --jobs 20`` is the long form; the test suite runs a short one.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from standardwebhooks import Webhook

from hub.folder_faults import Fault
from hub.folder_server import FolderHub
from jobs.signing import new_secret
from merge.checkpoint.index import index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run as run_merge
from tests import services, tiny
from tests.acceptance.conftest import TOKENS, model_texts, store_token
from tests.acceptance.stack import Inbox, Process, Stack, wait_for

VICTIMS = ("child", "worker", "dispatcher", "api", "valkey")
RECIPES: tuple[dict[str, Any], ...] = (
    {"steps": [{"method": "ties", "density": 0.4}]},
    {"steps": [{"method": "linear"}], "base": None},
    {"steps": [{"method": "dare", "density": 0.6}, {"method": "task_arithmetic", "scale": 0.8}], "seed": 7},
    {"steps": [{"method": "slerp", "t": 0.3}], "base": None},
    {"steps": [{"method": "ties", "density": 0.3, "scope": "global"}]},
)
PATIENT = {
    "MERGERY_MAX_ATTEMPTS": "30",
    "MERGERY_WEBHOOK_RETRY_SECONDS": ",".join(["0", *["0.5"] * 60]),
}


@dataclass(frozen=True)
class Script:
    """What will happen: so many jobs and kills, at moments that the seed decides."""

    jobs: int
    kills: int
    seed: int
    pause: tuple[float, float] = (1.0, 4.0)
    seconds: float = 240.0

    def victims(self) -> Iterator[tuple[str, float]]:
        """Every kind of process once in each round of five, with the seconds to wait before each."""
        rng = random.Random(self.seed)
        deck: list[str] = []
        for _ in range(self.kills):
            deck = deck or rng.sample(VICTIMS, len(VICTIMS))
            yield deck.pop(), rng.uniform(*self.pause)


@dataclass
class Outcome:
    """What was seen, for the assertions of :func:`check` and for people."""

    kills: Counter[str] = field(default_factory=Counter)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0
    requeued: int = 0
    resumed: int = 0


def recipe_of(number: int) -> dict[str, Any]:
    """The recipe of one job; the families of recipes take turns."""
    chosen = RECIPES[number % len(RECIPES)]
    sources = [
        {"id": "a", "model": "team/expert1", "weight": round(0.3 + 0.05 * (number % 8), 2)},
        {"id": "b", "model": "team/expert2", "weight": 0.5},
    ]
    return {"base": "team/base", "sources": sources, "shard_bytes": 65_536, **chosen}


def expected(root: Path, number: int, folder: Path) -> dict[str, bytes]:
    """The files which the engine alone, undisturbed, makes of a job's recipe."""
    recipe = recipe_from(recipe_of(number))
    folders = {source.id: root / source.model for source in recipe.sources}
    if recipe.base is not None:
        folders["base"] = root / recipe.base
    models = {key: index_folder(path, key) for key, path in folders.items()}
    out = folder / f"undisturbed-{number}"
    run_merge(make_plan(recipe, models, budget=1 << 30), folders, out, budget_bytes=1 << 30, threads=1)
    return model_texts(out)


def strike(stack: Stack, victim: str) -> bool:
    """Kills -9 one process and starts it again where nobody else would; says whether it was there."""
    if victim == "child":
        children = stack.worker.children()
        if not children:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(children[-1]).kill()
        return True
    process: Process = getattr(stack, victim)
    process.kill()
    time.sleep(0.3)
    process.start()
    return True


def run(
    script: Script, folder: Path, database_url: str, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Runs the whole script against a service of its own and checks everything; returns what was seen."""
    tiny.family(folder / "hub" / "team", experts=2, layers=6, hidden=64, shards=2)
    hub = FolderHub(folder / "hub", TOKENS)
    secret = new_secret()
    started = time.monotonic()
    with hub.serve(), Inbox().serve() as inbox:
        hub.faults.add("preupload", Fault(delay=0.12), times=1_000_000)
        with Stack(folder / "stack", database_url, hub.url, PATIENT).run() as stack:
            outcome = _play(script, stack, inbox, secret, say)
            wait_for(lambda: _all_told(outcome, inbox), "every webhook has arrived", 60)
            outcome.seconds = time.monotonic() - started
            check(outcome, inbox, secret)
    for number, job in enumerate(outcome.jobs):
        wanted = expected(hub.store.root, number, folder)
        found = model_texts(hub.store.root / f"team/merged-{number}")
        assert found == wanted, f"{job['id']}: {_difference(found, wanted)}"
    assert hub.stats.requests["commit"] == script.jobs, "one commit a job"
    hub.close()
    return outcome


def _play(script: Script, stack: Stack, inbox: Inbox, secret: str, say: Callable[[str], None]) -> Outcome:
    outcome = Outcome()
    credential = store_token(stack)
    over, struck = threading.Event(), threading.Event()

    def rest(seconds: float) -> bool:
        """Looks after the parts meanwhile; says whether all is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if over.wait(min(0.5, seconds)):
                return True
            stack.revive()
        return False

    def kill_some() -> None:
        for victim, pause in script.victims():
            if rest(pause):
                return
            if strike(stack, victim):
                outcome.kills[victim] += 1
                say(f"killed {victim}")
        struck.set()
        rest(script.seconds)

    killer = threading.Thread(target=kill_some, name="killer")
    ids = []
    for number in range(script.jobs):
        body = {
            "recipe": recipe_of(number),
            "output": {"repo": f"team/merged-{number}"},
            "hub_credential": credential,
            "webhook": {"url": inbox.url, "secret": secret, "events": ["*"]},
        }
        ids.append(stack.submit(body, key=f"chaos-{script.seed}-{number}")["id"])
        if number == 0:
            killer.start()
    try:
        deadline = time.monotonic() + script.seconds
        for job_id in ids:
            outcome.jobs.append(stack.wait(job_id, seconds=deadline - time.monotonic()))
            say(f"{job_id} {outcome.jobs[-1]['state']} at attempt {outcome.jobs[-1]['attempt']}")
        # The kills that are left strike an idle service, whose webhooks are still on their way.
        struck.wait(script.seconds)
    finally:
        over.set()
        killer.join(30)
    wait_for(stack.api_answers, "the API is back")
    outcome.events = {job_id: stack.events(job_id) for job_id in ids}
    return outcome


def check(outcome: Outcome, inbox: Inbox, secret: str) -> None:
    """Every job ended once and well, no shard was written twice, every event was told under one id."""
    ids: dict[tuple[str, int], set[str]] = {}
    for headers, body in list(inbox.received):
        told = Webhook(secret).verify(body, headers)
        ids.setdefault((told["data"]["id"], told["data"]["seq"]), set()).add(headers["webhook-id"])
    assert all(len(messages) == 1 for messages in ids.values()), "one id an event"
    for job in outcome.jobs:
        assert job["state"] == "succeeded", job
        events = outcome.events[job["id"]]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        ends = [event for event in events if event["type"] in ENDS]
        assert [event["type"] for event in ends] == ["merge.succeeded"], ends
        assert events[-1] is ends[0], "nothing happens after the end"
        shards = Counter(
            event["data"]["uri"]
            for event in events
            if event["type"] == "merge.artifact" and event["data"]["kind"] == "shard"
        )
        assert shards and max(shards.values()) == 1, f"a shard was written again: {shards}"
        types = [event["type"] for event in events]
        outcome.requeued += types.count("merge.requeued")
        outcome.resumed += "merge.requeued" in types[types.index("merge.artifact") :]
        for event in events:
            if event["type"] in TOLD:
                assert (job["id"], event["seq"]) in ids, f"never told: {event}"


ENDS = ("merge.succeeded", "merge.failed", "merge.cancelled", "merge.expired")
TOLD = (*ENDS, "merge.queued", "merge.started", "evaluation.completed")


def _all_told(outcome: Outcome, inbox: Inbox) -> bool:
    told = {(body["data"]["id"], body["data"]["seq"]) for type_ in TOLD for _, body in inbox.of_type(type_)}
    wanted = {
        (job_id, event["seq"])
        for job_id, events in outcome.events.items()
        for event in events
        if event["type"] in TOLD
    }
    return wanted <= told


def _difference(found: dict[str, bytes], wanted: dict[str, bytes]) -> str:
    if found.keys() != wanted.keys():
        return f"files {sorted(found.keys() ^ wanted.keys())} are only on one side"
    return f"{[name for name in wanted if found[name] != wanted[name]]} differ"


def main(arguments: list[str] | None = None) -> int:
    """The long form, for people."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=0, help="default: three for every two jobs")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    script = Script(
        options.jobs, options.kills or options.jobs * 3 // 2, options.seed, pause=(2.0, 9.0), seconds=1800.0
    )
    with (
        tempfile.TemporaryDirectory(prefix="mergery-chaos-") as folder,
        services.scratch_folder() as servers,
        services.postgres_server(servers) as postgres,
        services.fresh_database(postgres) as url,
    ):
        outcome = run(script, Path(folder), url, say=lambda text: print(text, flush=True))
    print(
        f"{len(outcome.jobs)} jobs, {sum(outcome.kills.values())} kills ({dict(outcome.kills)}), "
        f"{outcome.requeued} times queued again, {outcome.resumed} jobs went on from shards, "
        f"{outcome.seconds:.0f} s, seed {script.seed}: "
        "every job ended once with the bytes of an undisturbed run"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
