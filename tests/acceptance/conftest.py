"""One running service for the acceptance tests of a module."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.embedded import Server
from hub.folder_server import FolderHub
from tests import services, tiny
from tests.acceptance.stack import Stack

TOKEN = "hf_canaryCANARYcanaryCANARYcanary"
TOKENS = {TOKEN: {"name": "alice", "role": "write", "orgs": ["team"]}}


@dataclass
class Service:
    """The processes, and the Hub in this process which they talk to."""

    stack: Stack
    hub: FolderHub
    credential: str

    def read(self, repo: str, name: str) -> bytes:
        """A file of a repository as its newest commit has it."""
        return (self.hub.store.root / repo / name).read_bytes()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Iterator[Service]:
    """API, dispatcher, worker and broker over a database of their own, and a tiny family on the Hub."""
    folder = tmp_path_factory.mktemp("service")
    tiny.family(folder / "hub" / "team", experts=2, layers=6, hidden=64, shards=2)
    hub = FolderHub(folder / "hub", TOKENS)
    with services.fresh_database(postgres) as url, hub.serve():
        hub.mark("team/expert1", private=True)
        with Stack(folder / "stack", url, hub.url).run() as stack:
            yield Service(stack, hub, store_token(stack))
    hub.close()


def store_token(stack: Stack) -> str:
    """Gives the service the Hub token; the id under which jobs name it."""
    answer = stack.call("POST", "/v1/hub-credentials", json={"name": "hub", "token": TOKEN})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def model_texts(folder: Path) -> dict[str, bytes]:
    """Every file of a model folder that must not depend on how a run went: all but manifest and card."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name not in ("mergery.json", "README.md", ".gitattributes")
    }
