"""A folder of models served over the Hub's own HTTP protocol: for machines without the internet, and for
tests.

``python -m hub.folder_server FOLDER --port 8765 --tokens tokens.yaml``
"""

import argparse
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from hub.folder_access import Marks, Tokens
from hub.folder_errors import ConfigInvalid
from hub.folder_faults import FaultPlan, Stats
from hub.folder_routes import FolderApp
from hub.folder_store import FolderStore, Repo
from hub.folder_writes import Writes

PAGE_SIZE = 1000


class FolderHub:
    """The models under ``root`` (``root/<org>/<name>/…``, data sets under ``root/datasets/<org>/<name>/…``)
    as a Hub.

    ``tokens`` is a YAML or JSON file, or a mapping, ``{token: {name, role: read | write, orgs}}``; without it
    everybody may read what is public and nobody may write. ``repos.yaml`` in the root marks repositories
    private or gated. ``xet`` offers chunked transfers to clients on this machine. ``stats`` counts requests
    and bytes; ``faults`` makes it misbehave.
    """

    def __init__(
        self,
        root: Path,
        tokens: Path | Mapping[str, Any] | None = None,
        *,
        xet: bool = True,
        page_size: int = PAGE_SIZE,
    ) -> None:
        self.stats, self.faults = Stats(), FaultPlan()
        self.tokens = Tokens.load(tokens)
        self.store = FolderStore(root)
        self.app = FolderApp(Writes(self.store, self.tokens, self.stats, self.faults, xet, page_size))
        self.url = ""

    def mark(
        self,
        repo_id: str,
        *,
        private: bool = False,
        gated: bool = False,
        allowed: tuple[str, ...] = (),
        kind: str = "model",
    ) -> None:
        """Mark a repository private or gated; ``allowed`` are the users let in besides its owners."""
        owner, _, name = repo_id.partition("/")
        self.store.mark(self.store.repo(kind, owner, name), Marks(private, gated, allowed))

    def head(self, repo_id: str, kind: str = "model") -> str:
        """The commit id of ``main``."""
        owner, _, name = repo_id.partition("/")
        return self.store.head(Repo(kind, owner, name)).id

    @contextmanager
    def serve(self, host: str = "127.0.0.1", port: int = 0) -> Iterator["FolderHub"]:
        """Serve from a thread while the block runs; ``url`` is the endpoint (port 0: any free one)."""
        listener = socket.create_server((host, port))
        self.url = f"http://{host}:{listener.getsockname()[1]}"
        server = uvicorn.Server(self._config())
        thread = threading.Thread(target=server.run, args=([listener],), name="folder-hub", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()
            listener.close()

    def run(self, host: str, port: int, *, announce: Callable[[str], None]) -> None:
        """Serve until the process is told to stop; ``announce`` gets the endpoint once it listens.

        Files that were never hashed are hashed in the background meanwhile.
        """
        listener = socket.create_server((host, port))
        self.url = f"http://{host}:{listener.getsockname()[1]}"
        announce(self.url)
        threading.Thread(target=self.store.warm, name="folder-hub-warm", daemon=True).start()
        try:
            uvicorn.Server(self._config()).run([listener])
        finally:
            listener.close()

    def close(self) -> None:
        """Let go of the state file."""
        self.store.close()

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self.app,
            lifespan="off",
            access_log=False,
            ws="none",
            log_config=None,
            log_level="critical",
            server_header=False,
            timeout_graceful_shutdown=2,
        )


def serve(
    folder: Path, *, host: str = "127.0.0.1", port: int = 8765, tokens: Path | None = None, xet: bool = True
) -> None:
    """Serve a folder until the process is told to stop; prints the endpoint to set in ``HF_ENDPOINT``."""
    if not folder.is_dir():
        raise ConfigInvalid(f"{folder} is not a folder")
    hub = FolderHub(folder, tokens, xet=xet)
    try:
        hub.run(host, port, announce=_print_endpoint)
    finally:
        hub.close()


def _print_endpoint(url: str) -> None:
    sys.stdout.write(f"HF_ENDPOINT={url}\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="mergery hub serve", description="Serve a folder of models as a Hub."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument(
        "--tokens", type=Path, help="YAML or JSON: {token: {name, role: read|write, orgs: [...]}}"
    )
    parser.add_argument("--no-xet", action="store_true", help="plain HTTP transfers only")
    options = parser.parse_args(argv)
    try:
        serve(
            options.folder,
            host=options.host,
            port=options.port,
            tokens=options.tokens,
            xet=not options.no_xet,
        )
    except (ConfigInvalid, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
