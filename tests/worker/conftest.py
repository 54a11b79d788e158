"""A workshop over this test's own database, with a folder Hub in the same process."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker
from transformers import modeling_utils

from db import jobs as rows
from db.models.job import Job, JobEvent
from hub import session as hub_session
from hub.folder_server import FolderHub
from jobs import events, lifecycle
from jobs.credentials import store_token
from jobs.keyring import Keyring
from jobs.lifecycle import Fence
from settings import Settings
from tests import tiny
from tests.factories import TEST_SECRET, make_caller, make_job, make_rules, make_running
from worker.board import Board
from worker.device import free_memory
from worker.run_job import run_job
from worker.workshop import Workshop

TOKEN = "hf_canaryCANARYcanaryCANARYcanary"
TOKENS = {TOKEN: {"name": "alice", "role": "write", "orgs": ["team"]}}


@dataclass
class Floor:
    """What a test of the worker's rooms works with."""

    hub: FolderHub
    folder: Path
    sessions: sessionmaker[Session]
    changes: dict[str, Any] = field(default_factory=dict)
    free_memory: Callable[[str], int] = free_memory

    @property
    def workshop(self) -> Workshop:
        settings = Settings(
            data_dir=self.folder / "data",
            hub_endpoint=self.hub.url,
            secret_key=TEST_SECRET,
            threads=1,
            model_roots=[self.hub.store.root / "team"],
            **{"lease_seconds": 20.0, "heartbeat_seconds": 0.2, **self.changes},
        )
        settings.scratch.mkdir(parents=True, exist_ok=True)
        board = Board.create(settings.scratch)
        return Workshop(
            settings,
            self.sessions.begin,
            Keyring(TEST_SECRET),
            "cpu",
            board,
            free_memory=lambda device: self.free_memory(device),
        )

    def order(self, recipe: dict[str, Any] | None = None, *, attempts: int = 3, **fields: Any) -> str:
        """A queued job of alice's; nothing is planned yet."""
        with self.sessions.begin() as session:
            caller = make_caller(session)
            credential = store_token(session, Keyring(TEST_SECRET), caller.tenant_id, "hub", TOKEN)
            rules = make_rules(max_attempts=attempts, model_roots=[self.hub.store.root / "team"])
            return make_job(
                session,
                caller,
                rules=rules,
                recipe=recipe or family_recipe(),
                hub_credential=credential.id,
                **fields,
            ).id

    def run(self, job_id: str, **changes: Any) -> Job:
        """One attempt in this process; the row afterwards."""
        self.changes.update(changes)
        run_job(self.workshop, job_id, "worker-1")
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        with self.sessions() as session:
            job = rows.get(session, job_id)
            assert job is not None
            return job

    def events(self, job_id: str) -> list[JobEvent]:
        with self.sessions() as session:
            return list(events.after(session, job_id, 0, 1000))

    def types(self, job_id: str) -> list[str]:
        return [event.type for event in self.events(job_id)]

    def shards_written(self, job_id: str) -> list[str]:
        """Names of the shards that were written, once for each time."""
        found = [event.data for event in self.events(job_id) if event.type == "merge.artifact"]
        return [each["uri"] for each in found if each["kind"] == "shard"]

    def cancel(self, job_id: str) -> None:
        with self.sessions.begin() as session:
            job = rows.get(session, job_id)
            assert job is not None
            lifecycle.request_cancel(session, job)

    def read(self, repo: str, name: str) -> bytes:
        """A file of a repository as its newest commit has it."""
        return (self.hub.store.root / repo / name).read_bytes()


def family_recipe(**changes: Any) -> dict[str, Any]:
    """TIES of two experts on their base, in many small shards."""
    return {
        "base": "team/base",
        "sources": [{"id": "a", "model": "team/expert1"}, {"id": "b", "model": "team/expert2"}],
        "steps": [{"method": "ties", "density": 0.5}],
        "shard_bytes": 65_536,
        **changes,
    }


@pytest.fixture
def running(sessions: sessionmaker[Session]) -> Fence:
    """The fence of a job at work."""
    with sessions.begin() as session:
        return make_running(session)[1]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts, in two files each; copied by each test that serves them."""
    root = tmp_path_factory.mktemp("models")
    tiny.family(root / "team", experts=2, layers=6, hidden=64, shards=2)
    return root


@pytest.fixture
def made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here some jobs are threads of one process, where each has its own in the service: they would share
    torch's default dtype, which Transformers sets while it makes a model, and two at once leave it wrong.
    """
    lock, local = threading.RLock(), modeling_utils.local_torch_dtype

    @contextmanager
    def alone(*arguments: Any) -> Iterator[None]:
        with lock, local(*arguments):
            yield

    monkeypatch.setattr(modeling_utils, "local_torch_dtype", alone)


@pytest.fixture
def floor(
    tmp_path: Path,
    models: Path,
    sessions: sessionmaker[Session],
    made_one_by_one: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Floor]:
    """Everything, with a folder Hub of this test's own, which is asked again at once where it fails."""
    monkeypatch.setattr(hub_session, "FIRST_WAIT", 0.01)
    shutil.copytree(models, tmp_path / "hub")
    hub = FolderHub(tmp_path / "hub", TOKENS)
    with hub.serve():
        yield Floor(hub, tmp_path, sessions)
    hub.close()
