"""The dashboard over a real database, with models in a folder that the operator allows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session, sessionmaker

from api.app import create_app
from jobs.keys import Caller
from settings import Settings
from tests import tiny
from tests.factories import TEST_SECRET, make_key


@dataclass
class Site:
    """A browser without JavaScript: cookies are kept, redirects are shown, forms carry their token."""

    client: TestClient
    caller: Caller
    key: str
    models: Path
    begin: Callable[[], Any]
    csrf: str = ""

    def sign_in(self) -> "Site":
        assert self.post("/login", key=self.key).status_code == 303
        self.csrf = self.get("/methods").text.split('name="csrf_token" value="')[1].split('"')[0]
        return self

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.client.get(path, headers=headers)

    def post(self, path: str, headers: dict[str, str] | None = None, **form: Any) -> httpx2.Response:
        body = urlencode({"csrf_token": self.csrf, **form}, doseq=True)
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.client.post(path, content=body, headers={**kind, **(headers or {})})

    def draft(self, **changes: str) -> dict[str, str]:
        """A filled-in form of a merge that works."""
        return {
            "tab": "form",
            "base": str(self.models / "base"),
            "sources-0-model": str(self.models / "expert1"),
            "sources-1-model": str(self.models / "expert2"),
            "steps-0-method": "task_arithmetic",
            "private": "on",
            "publish": "checked",
        } | {name.replace("__", "-"): value for name, value in changes.items()}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two experts, and a stranger of another shape."""
    root = tmp_path_factory.mktemp("models")
    tiny.family(root, experts=2)
    tiny.llama(root / "stranger", hidden=32)
    return root


@pytest.fixture
def site(postgres_url: str, sessions: sessionmaker[Session], models: Path, tmp_path: Path) -> Iterator[Site]:
    """The whole application, nobody signed in yet."""
    settings = Settings(
        database_url=postgres_url,
        secret_key=TEST_SECRET,
        data_dir=tmp_path,
        model_roots=[models],
        requests_per_minute=0,
        webhook_allow_http=True,
    )
    with sessions.begin() as session:
        caller, key = make_key(session)
    with TestClient(create_app(settings), follow_redirects=False) as client:
        yield Site(client, caller, key, models, sessions.begin)
