"""How long a whole job takes beside its slowest stage, over a line of limited speed.

``python -m bench.overlap`` makes three Llama-shaped models, serves them with a folder Hub whose line passes
so many bytes a second each way, and measures four times: pulling alone, merging alone, pushing alone, and the
job as a worker runs it (plan, pull, merge, check, push, commit), where the three overlap. The bar: the job
takes at most 1.2 times its slowest stage. Everything runs on this machine, so the line should be what is
slow: the default makes pulling and pushing take about equally long, which is the hardest case.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # xet on one machine copies files past any line

from bench import family
from cli.embedded import start_postgres
from db import jobs, tokens
from db.session import make_engine, make_sessions
from hub.download import download
from hub.folder_server import FolderHub
from hub.snapshot import Hub
from hub.upload import Push
from jobs import keys
from jobs.credentials import store_token
from jobs.keyring import Keyring
from jobs.request import JobRequest
from jobs.submit import Rules, submit
from merge.checkpoint.index import index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run as run_merge
from migrations.run import upgrade
from settings import Settings
from worker.board import Board
from worker.run_job import run_job
from worker.workshop import Workshop

BAR = 1.2
TOKEN = "hf_bench"
SECRET = "overlap" * 8
MODELS = ("base", "a", "b")
RECIPE: dict[str, Any] = {
    "base": "bench/base",
    "sources": [{"id": name, "model": f"bench/{name}"} for name in MODELS[1:]],
    "steps": [{"method": "task_arithmetic"}],
}


@dataclass
class Bench:
    """The Hub, its models and a place to work."""

    hub: FolderHub
    folder: Path
    shard_bytes: int
    took: float = 0.0

    @property
    def recipe(self) -> dict[str, Any]:
        """Task arithmetic of two experts, in shards of the models' size."""
        return RECIPE | {"shard_bytes": self.shard_bytes}

    def client(self) -> Hub:
        """As the job sees the Hub."""
        return Hub(self.hub.url, TOKEN)

    def pull(self) -> None:
        """All three models, with the checks of a download."""
        client = self.client()
        for name in MODELS:
            pinned = client.pin(f"bench/{name}")
            files = [file.path for file in pinned.files]
            target = self.folder / "pulled" / name
            download(client, pinned, target, files, on_bytes=lambda _: None, should_stop=lambda: False)

    def merge(self) -> None:
        """The pulled models, with nothing else going on."""
        names = {"base": "base", "a": "a", "b": "b"}
        folders = {key: self.folder / "pulled" / name for key, name in names.items()}
        models = {key: index_folder(path, key) for key, path in folders.items()}
        plan = make_plan(recipe_from(self.recipe), models, budget=1 << 30)
        run_merge(plan, folders, self.folder / "merged", budget_bytes=1 << 30, threads=2)

    def push(self) -> None:
        """The merged model, file by file, and one commit."""
        made = Push(self.client(), "bench/alone", job_id="job_alone")
        made.prepare()
        small = {}
        for path in sorted((self.folder / "merged").iterdir()):
            if path.suffix == ".safetensors":
                made.add_file(path.name, path)
            else:
                small[path.name] = path.read_bytes()
        made.commit("alone", small)

    def job(self) -> None:
        """The whole job, as a worker's child runs it."""
        server = start_postgres(self.folder)
        try:
            upgrade(server.url)
            engine = make_engine(server.url, pool_size=4)
            sessions = make_sessions(engine)
            settings = Settings(
                data_dir=self.folder / "data", hub_endpoint=self.hub.url, secret_key=SECRET, threads=2
            )
            settings.scratch.mkdir(parents=True)
            keyring = Keyring(SECRET)
            workshop = Workshop(settings, sessions.begin, keyring, "cpu", Board.create(settings.scratch))
            workshop.warm_up()
            job_id = self._order(sessions, keyring)
            with timed("the whole job") as took:
                state = run_job(workshop, job_id, "bench")
            self.took = took[0]
            with sessions() as session:
                row = jobs.get(session, job_id)
                assert row is not None
                if state != "succeeded":
                    sys.exit(f"the job ended as {state}: {row.error_code} {row.error_detail}")
            engine.dispose()
        finally:
            server.stop()

    def _order(self, sessions: sessionmaker[Session], keyring: Keyring) -> str:
        with sessions.begin() as session:
            tenant = tokens.tenant_named(session, "bench")
            _, secret = keys.create_key(session, tenant.id, "bench", ["admin"])
            caller = keys.authenticate(session, secret)
            token = store_token(session, keyring, tenant.id, "hub", TOKEN)
            body = {"recipe": self.recipe, "output": {"repo": "bench/job"}, "hub_credential": token.id}
            rules = Rules(keyring, 10, 1, 3600)
            return str(submit(session, caller, JobRequest.model_validate(body), None, rules).id)


@contextmanager
def timed(what: str) -> Iterator[list[float]]:
    """Prints how long the block took, and leaves it in the list."""
    started, found = time.perf_counter(), [0.0]
    yield found
    found[0] = time.perf_counter() - started
    print(f"{what:16}{found[0]:8.1f} s", flush=True)


def measure(what: str, work: Callable[[], None]) -> float:
    """Seconds that ``work`` takes."""
    with timed(what) as took:
        work()
    return took[0]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.overlap", description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=1.5e8, help="of each model (default 150 million)")
    parser.add_argument("--down", type=float, default=30.0, help="MB a second from the Hub (default 30)")
    parser.add_argument("--up", type=float, default=10.0, help="MB a second to the Hub (default 10)")
    parser.add_argument("--shards", type=int, default=24, help="files of a model (default 24)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mergery-overlap-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        family.SHARD_BYTES = int(2 * options.parameters / options.shards)
        (folder / "hub" / "bench").mkdir(parents=True)
        family.make_family(folder / "hub" / "bench", int(options.parameters))
        hub = FolderHub(folder / "hub", {TOKEN: {"name": "bench", "role": "write"}}, xet=False)
        with hub.serve():
            bench = Bench(hub, folder, family.SHARD_BYTES)
            hub.store.warm()
            hub.faults.line.down, hub.faults.line.up = options.down * 1e6, options.up * 1e6
            stages = [measure(what, getattr(bench, what)) for what in ("pull", "merge", "push")]
            bench.job()
        hub.close()
        ratio = bench.took / max(stages)
        print(f"{'one by one':16}{sum(stages):8.1f} s")
        print(f"the job takes {ratio:.2f} of its slowest stage")
        print(f"bar {BAR}: {'met' if ratio <= BAR else 'MISSED'}; load {os.getloadavg()[0]:.1f}")
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
