"""An application on a database of its own, tiny models in an allowed folder, callers of two tenants."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import create_app
from jobs.keys import Caller
from settings import Settings
from tests import tiny
from tests.factories import TEST_SECRET, make_key

ORDER: dict[str, Any] = {
    "recipe": {
        "base": "base",
        "sources": [{"id": "a", "model": "expert1", "weight": 0.6}, {"id": "b", "model": "expert2"}],
        "steps": [{"method": "linear"}],
    },
    "output": {"repo": "acme/merged"},
    "metadata": {"team": "nlp"},
}


@dataclass(frozen=True)
class Who:
    """A caller with the headers that prove it."""

    caller: Caller
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        """For requests."""
        return {"Authorization": f"Bearer {self.secret}"}


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An allowed folder with a base and two experts."""
    root = tmp_path_factory.mktemp("models")
    tiny.llama(root / "base")
    tiny.llama(root / "expert1", expert=1)
    tiny.llama(root / "expert2", expert=2)
    tiny.llama(root / "wide", hidden=32)
    return root


@pytest.fixture
def settings(postgres_url: str, model_root: Path, tmp_path: Path) -> Settings:
    """Settings without a broker; tests copy them with changes."""
    return Settings(
        database_url=postgres_url,
        broker_url=None,
        secret_key=SecretStr(TEST_SECRET),
        data_dir=tmp_path / "data",
        model_roots=[model_root],
        hub_endpoint="http://127.0.0.1:9",
        public_url="http://testserver",
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The application."""
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client of the running application."""
    with TestClient(app) as made:
        yield made


@pytest.fixture
def someone(sessions: sessionmaker[Session]) -> Callable[..., Who]:
    """Makes a caller: ``someone("tenant", "merges:read")``; all rights without scopes."""

    def make(tenant: str = "acme", *scopes: str) -> Who:
        with sessions.begin() as session:
            return Who(*make_key(session, tenant, *scopes))

    return make


@pytest.fixture
def anna(someone: Callable[..., Who]) -> Who:
    """May do everything in the tenant acme."""
    return someone("acme")


@pytest.fixture
def bert(someone: Callable[..., Who]) -> Who:
    """May do everything in another tenant."""
    return someone("other")


@pytest.fixture
def api(client: TestClient, anna: Who) -> TestClient:
    """The client with Anna's key on every request."""
    client.headers.update(anna.headers)
    return client


@pytest.fixture
def served(app: FastAPI) -> Iterator[str]:
    """URL of the application on a real socket, for what streams."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
