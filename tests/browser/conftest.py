"""A real Chromium before the real service: API, dispatcher, worker, folder Hub, PostgreSQL and Valkey."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from cli.embedded import Server
from db.session import make_engine, make_sessions
from hub.folder_server import FolderHub
from jobs.keys import Caller
from tests import services, tiny
from tests.acceptance.stack import Stack
from tests.factories import make_caller

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
]
AXE = Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"
MILLISECONDS = 30_000
TOKENS = {"hf_everyone": {"name": "acme", "role": "write", "orgs": ["acme"]}}


@dataclass
class Desktop:
    """A browser and the service it looks at."""

    browser: Browser
    stack: Stack
    hub: FolderHub
    begin: Callable[[], Any]
    caller: Caller
    complaints: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.stack.api_port}"

    def context(self, *, signed_in: bool = True, **options: Any) -> BrowserContext:
        """A fresh profile; what pages complain of, or ask of other hosts, is collected in ``complaints``."""
        context = self.browser.new_context(base_url=self.url, **options)
        context.set_default_timeout(MILLISECONDS)
        context.on("console", self._note)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on("request", self._check)
        if signed_in:
            page = context.new_page()
            page.goto("/login")
            page.get_by_label("API key").fill(self.stack.key)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/jobs")
            page.close()
        return context

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _check(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.complaints.append(f"asked another host: {request.url}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser; without one the tests say so loudly and do not run.

    It keeps an event loop running, so it ends with its file: no other file's tests meet that loop.
    """
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "NO CHROMIUM HERE: the browser tests did not run. Install the package 'chromium'."
        print(f"\n*** {reason} ***", file=sys.__stderr__, flush=True)
        pytest.skip(reason)
    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def desktop(
    chromium: Browser, postgres: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desktop]:
    """The whole service with a base and two experts on its Hub."""
    folder = tmp_path_factory.mktemp("browser")
    tiny.family(folder / "hub" / "acme", experts=2)
    tiny.llama(folder / "hub" / "acme" / "stranger", hidden=32)
    hub = FolderHub(folder / "hub", TOKENS)
    with ExitStack() as started:
        url = started.enter_context(services.fresh_database(postgres))
        started.enter_context(hub.serve())
        stack = started.enter_context(Stack(folder / "stack", url, hub.url).run())
        engine = make_engine(url)
        started.callback(engine.dispose)
        begin = make_sessions(engine).begin
        with begin() as session:
            caller = make_caller(session)
        yield Desktop(chromium, stack, hub, begin, caller)


@pytest.fixture
def page(desktop: Desktop) -> Iterator[Page]:
    """A signed-in page that must not complain of anything."""
    context = desktop.context()
    desktop.complaints.clear()
    yield context.new_page()
    context.close()
    assert desktop.complaints == []
