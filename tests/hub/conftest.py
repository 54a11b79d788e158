"""A folder Hub with a few small repositories, served on the loopback, and clients of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub.folder_server import FolderHub
from hub.snapshot import Hub

TOKENS = {
    "hf_alice": {"name": "alice", "role": "write", "orgs": ["team"]},
    "hf_bob": {"name": "bob", "role": "write"},
    "hf_carol": {"name": "carol", "role": "read", "orgs": ["team"]},
}
HEADER = json.dumps({"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(range(16))


def write_model(
    folder: Path, weights: bytes = WEIGHTS, card: str = "---\nlicense: mit\n---\n# A model\n"
) -> None:
    """A repository of three files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "README.md").write_text(card)
    (folder / "model.safetensors").write_bytes(weights)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that is served: ``team/model`` and the data set ``team/texts``."""
    root = tmp_path / "root"
    write_model(root / "team" / "model")
    texts = root / "datasets" / "team" / "texts"
    texts.mkdir(parents=True)
    (texts / "test.jsonl").write_text('{"text": "hello"}\n')
    return root


@pytest.fixture
def folder_hub(root: Path) -> Iterator[FolderHub]:
    """A running folder Hub."""
    hub = FolderHub(root, TOKENS)
    with hub.serve():
        yield hub
    hub.close()


@pytest.fixture
def waits() -> list[float]:
    """The pauses that clients made by ``client`` would have made."""
    return []


@pytest.fixture
def client(folder_hub: FolderHub, waits: list[float]) -> Callable[..., Hub]:
    """Makes clients of the folder Hub that do not really pause."""

    def make(token: str | None = "hf_alice", patience: float = 60.0) -> Hub:
        return Hub(folder_hub.url, token, patience=patience, sleep=waits.append)

    return make


def without_ranges(hub: Hub) -> Hub:
    """As behind a proxy that sends every file from its first byte on."""
    opened = hub.opened
    hub.opened = lambda snapshot, name, _, end: opened(snapshot, name, 0, end)  # type: ignore[method-assign]
    return hub
