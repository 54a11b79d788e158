"""A folder Hub killed at the worst moments: what was committed is there, what was not leaves no trace."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from hub.folder_server import FolderHub
from hub.folder_store import Change, FolderStore

DIES_BEFORE_LAYOUT = """
import os, sys
from pathlib import Path
from hub.folder_store import Change, FolderStore

class Dying(FolderStore):
    def _finish_layout(self, repo):
        if self._state.unfinished(repo.key, "main"):
            os._exit(9)

store = Dying(Path(sys.argv[1]))
repo = store.repo("model", "team", "model")
store.commit(repo, "main", "title", "", None, [
    Change("config.json", content=b"new"), Change("sub/new.txt", content=b"more"),
    Change("model.safetensors"),
])
"""

DIES_BEFORE_THE_COMMIT = """
import os, sys
from pathlib import Path
from hub.folder_store import Change, FolderStore

class Dying(FolderStore):
    def _preserve(self, repo, old, new):
        os._exit(9)

store = Dying(Path(sys.argv[1]))
repo = store.repo("model", "team", "model")
store.commit(repo, "main", "t", "", None, [Change("config.json", content=b"new")])
"""


def run(script: str, root: Path) -> int:
    return subprocess.run([sys.executable, "-c", script, str(root)], timeout=60, check=False).returncode


def test_a_commit_cut_off_before_its_files_are_laid_out_is_finished_later(root: Path) -> None:
    assert run(DIES_BEFORE_LAYOUT, root) == 9
    assert (root / "team/model/config.json").read_text() != "new"
    store = FolderStore(root)
    repo = store.repo("model", "team", "model")
    head = store.head(repo)
    store.close()
    assert (head.title, sorted(head.tree)) == ("title", ["README.md", "config.json", "sub/new.txt"])
    assert (root / "team/model/config.json").read_text() == "new"
    assert (root / "team/model/sub/new.txt").read_text() == "more"
    assert not (root / "team/model/model.safetensors").exists()


def test_a_commit_cut_off_before_it_counted_never_happened(root: Path) -> None:
    store = FolderStore(root)
    before = store.head(store.repo("model", "team", "model"))
    store.close()
    assert run(DIES_BEFORE_THE_COMMIT, root) == 9
    store = FolderStore(root)
    assert store.head(store.repo("model", "team", "model")) == before
    store.close()


def test_a_killed_server_comes_back_with_every_commit(root: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text("hf_alice: {name: team, role: write}\n")
    command = [sys.executable, "-m", "hub.folder_server", str(root), "--port", "0", "--tokens", str(tokens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
        api = HfApi(endpoint=url, token="hf_alice")
        weights = os.urandom(1 << 20)
        operations = [CommitOperationAdd("w.safetensors", weights), CommitOperationAdd("a.txt", b"a")]
        made = api.create_commit("team/model", operations, commit_message="m")
        process.send_signal(signal.SIGKILL)
    again = FolderHub(root)
    assert again.head("team/model") == made.oid
    again.close()
    assert (root / "team/model/w.safetensors").read_bytes() == weights


def test_old_revisions_outlive_a_restart(root: Path) -> None:
    store = FolderStore(root)
    repo = store.repo("model", "team", "model")
    old = store.head(repo)
    store.commit(repo, "main", "t", "", old.id, [Change("config.json", content=b"new")])
    store.close()
    store = FolderStore(root)
    _, place = store.locate(repo, store.resolve(repo, old.id), "config.json")
    assert place.read_text() == '{"model_type": "llama"}'
    store.close()
