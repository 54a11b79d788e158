"""Downloads: whole, checked, resumed, stopped; by plain HTTP and by xet."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hub import xet
from hub.download import WORK_FOLDER, download
from hub.errors import (
    DiskFull,
    FileMissing,
    HashMismatch,
    Interrupted,
    NameRefused,
    RepoNotFound,
    Unavailable,
)
from hub.folder_faults import Fault
from hub.folder_server import FolderHub
from hub.snapshot import Hub, RepoFile, Snapshot
from hub.upload import Push
from tests.hub.conftest import without_ranges, write_model

Clients = Callable[..., Hub]
BIG = os.urandom(5 << 20)
NAMES = ["config.json", "model.safetensors"]


class Fetch:
    """A download into a folder, its byte counts added up."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder, self.counted = hub, folder, 0
        self.stop_at: int | None = None

    def __call__(self, snapshot: Snapshot, names: list[str] = NAMES) -> int:
        self.counted = 0
        download(self.hub, snapshot, self.folder, names, on_bytes=self._count, should_stop=self._should_stop)
        return self.counted

    def _count(self, number: int) -> None:
        self.counted += number

    def _should_stop(self) -> bool:
        return self.stop_at is not None and self.counted >= self.stop_at


@pytest.fixture
def big(root: Path) -> Path:
    """Makes the model five megabytes large."""
    write_model(root / "team/model", BIG)
    return root


@pytest.fixture
def fetch(client: Clients, big: Path, tmp_path: Path) -> Fetch:
    """A download by alice."""
    return Fetch(client(), tmp_path / "target")


def test_files_arrive_whole_and_are_counted(fetch: Fetch) -> None:
    snapshot = fetch.hub.pin("team/model")
    assert fetch(snapshot) == len(BIG) + 23
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG
    assert (fetch.folder / "config.json").read_text() == '{"model_type": "llama"}'
    assert not list((fetch.folder / WORK_FOLDER).glob("*.part"))


def test_a_second_call_makes_no_request(fetch: Fetch, folder_hub: FolderHub) -> None:
    snapshot = fetch.hub.pin("team/model")
    fetch(snapshot)
    folder_hub.stats.clear()
    assert fetch(snapshot) == len(BIG) + 23
    assert not folder_hub.stats.requests


def test_a_file_changed_since_it_was_checked_is_fetched_again(fetch: Fetch) -> None:
    snapshot = fetch.hub.pin("team/model")
    fetch(snapshot)
    (fetch.folder / "model.safetensors").write_bytes(b"other")
    fetch(snapshot)
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG


def test_a_broken_connection_is_resumed_where_it_broke(
    fetch: Fetch, folder_hub: FolderHub, waits: list[float]
) -> None:
    snapshot = fetch.hub.pin("team/model")
    folder_hub.faults.add("get", Fault(drop_after=3 << 20), path="model.safetensors")
    assert fetch(snapshot, ["model.safetensors"]) == len(BIG)
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG
    served = folder_hub.stats.bytes["weight"] + folder_hub.stats.bytes["header"]
    assert len(BIG) <= served <= len(BIG) + (1 << 20)
    assert len(waits) == 1 and folder_hub.stats.requests["get"] == 2


def test_a_new_process_goes_on_from_what_is_there(fetch: Fetch, client: Clients) -> None:
    snapshot = fetch.hub.pin("team/model")
    fetch.stop_at = 2 << 20
    with pytest.raises(Interrupted):
        fetch(snapshot, ["model.safetensors"])
    assert not (fetch.folder / "model.safetensors").exists()
    kept = next((fetch.folder / WORK_FOLDER).glob("*.part")).stat().st_size
    assert 2 << 20 <= kept < len(BIG)
    counts: list[int] = []
    names = ["model.safetensors"]
    download(client(), snapshot, fetch.folder, names, on_bytes=counts.append, should_stop=lambda: False)
    assert counts[0] == kept and sum(counts) == len(BIG) and min(counts) > 0
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG


def test_wrong_bytes_are_fetched_again_once(fetch: Fetch, folder_hub: FolderHub) -> None:
    snapshot = fetch.hub.pin("team/model")
    folder_hub.faults.add("get", Fault(corrupt=True), path="model.safetensors")
    assert fetch(snapshot) == len(BIG) + 23
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize("name", NAMES)
def test_bytes_that_stay_wrong_never_get_into_place(fetch: Fetch, folder_hub: FolderHub, name: str) -> None:
    snapshot = fetch.hub.pin("team/model")
    folder_hub.faults.add("get", Fault(corrupt=True), times=9, path=name)
    with pytest.raises(HashMismatch, match=name) as caught:
        fetch(snapshot)
    assert caught.value.retryable
    assert not (fetch.folder / name).exists()


def test_a_line_that_breaks_again_and_again_brings_the_file_in_the_end(
    fetch: Fetch, folder_hub: FolderHub, waits: list[float]
) -> None:
    folder_hub.faults.add("get", Fault(drop_after=700_000), times=6, path="model.safetensors")
    assert fetch(fetch.hub.pin("team/model"), ["model.safetensors"]) == len(BIG)
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG
    assert waits == [waits[0]] * 6


def test_failures_without_progress_end_the_download(
    fetch: Fetch, folder_hub: FolderHub, waits: list[float]
) -> None:
    snapshot = fetch.hub.pin("team/model")
    folder_hub.faults.add("get", Fault(status=503), times=99)
    with pytest.raises(Unavailable):
        fetch(snapshot, ["model.safetensors"])
    assert len(waits) == 3


def test_access_lost_in_the_middle_is_named_at_once(
    fetch: Fetch, folder_hub: FolderHub, waits: list[float]
) -> None:
    snapshot = fetch.hub.pin("team/model")
    folder_hub.faults.add("get", Fault(status=404, code="RepoNotFound"), times=9)
    with pytest.raises(RepoNotFound):
        fetch(snapshot)
    assert not waits


def test_another_tenants_finished_download_is_of_no_use_without_access(
    fetch: Fetch, client: Clients, folder_hub: FolderHub, tmp_path: Path
) -> None:
    folder_hub.mark("team/model", private=True)
    snapshot = fetch.hub.pin("team/model")
    fetch(snapshot)
    stranger = Fetch(client("hf_bob"), tmp_path / "bob")
    with pytest.raises(RepoNotFound):
        stranger(snapshot)
    assert not (tmp_path / "bob" / "model.safetensors").exists()


def test_an_absent_file_is_named_before_anything_is_fetched(fetch: Fetch, folder_hub: FolderHub) -> None:
    snapshot = fetch.hub.pin("team/model")
    with pytest.raises(FileMissing, match=r"absent\.bin"):
        fetch(snapshot, ["config.json", "absent.bin"])
    assert folder_hub.stats.requests["get"] == 0


def test_a_link_in_the_folder_does_not_lead_the_write_outside(
    fetch: Fetch, big: Path, tmp_path: Path
) -> None:
    (big / "team/model/sub").mkdir()
    (big / "team/model/sub/x.txt").write_text("x")
    (tmp_path / "outside").mkdir()
    fetch.folder.mkdir()
    (fetch.folder / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(NameRefused, match="outside its folder"):
        fetch(fetch.hub.pin("team/model"), ["sub/x.txt"])
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("name", ["../x", "/x", f"{WORK_FOLDER}/x"])
def test_a_snapshot_with_an_unsafe_name_writes_nothing(fetch: Fetch, tmp_path: Path, name: str) -> None:
    snapshot = replace(fetch.hub.pin("team/model"), files=(RepoFile(name, 1, "0" * 40),))
    with pytest.raises(NameRefused):
        fetch(snapshot, [name])


def test_a_download_that_does_not_fit_is_refused_before_it_starts(
    fetch: Fetch, folder_hub: FolderHub
) -> None:
    snapshot = replace(fetch.hub.pin("team/model"), files=(RepoFile("x.bin", 1 << 60, "0" * 40, "0" * 64),))
    with pytest.raises(DiskFull):
        fetch(snapshot, ["x.bin"])
    assert folder_hub.stats.requests["get"] == 0


def test_an_empty_file_is_a_file(fetch: Fetch, big: Path) -> None:
    (big / "team/model/empty.txt").touch()
    assert fetch(fetch.hub.pin("team/model"), ["empty.txt"]) == 0
    assert (fetch.folder / "empty.txt").read_bytes() == b""


@pytest.fixture
def pushed(fetch: Fetch, tmp_path: Path) -> Snapshot:
    """A repository whose weights came by xet."""
    push = Push(fetch.hub, "team/pushed", job_id="job_1")
    (tmp_path / "w.safetensors").write_bytes(BIG)
    push.add_file("model.safetensors", tmp_path / "w.safetensors")
    push.commit("push", {"config.json": b"{}"})
    return fetch.hub.pin("team/pushed")


def test_xet_files_come_from_the_chunk_store(fetch: Fetch, pushed: Snapshot, folder_hub: FolderHub) -> None:
    assert pushed.file("model.safetensors").xet_hash
    folder_hub.stats.clear()
    assert fetch(pushed) == len(BIG) + 2
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG
    assert folder_hub.stats.bytes == {"text": 2}


def test_where_xet_fails_plain_http_takes_over(fetch: Fetch, pushed: Snapshot, folder_hub: FolderHub) -> None:
    folder_hub.faults.add("xet-token", Fault(status=503), times=99)
    assert fetch(pushed) == len(BIG) + 2
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG


def test_a_chunk_store_that_fails_is_not_asked_for_the_next_file(
    fetch: Fetch, pushed: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client tries for minutes, each time."""
    asked = []

    def away() -> None:
        asked.append(1)
        raise RuntimeError("the store is away")

    monkeypatch.setattr(xet, "get_xet_session", away)
    for _ in range(2):
        assert fetch(pushed) == len(BIG) + 2
        (fetch.folder / "model.safetensors").unlink()
    assert asked == [1]


def test_a_xet_transfer_stops_when_asked(fetch: Fetch, pushed: Snapshot) -> None:
    fetch.stop_at = 0
    with pytest.raises(Interrupted):
        fetch(pushed)
    assert not (fetch.folder / "model.safetensors").exists()
    fetch.stop_at = None
    assert fetch(pushed) == len(BIG) + 2


def test_a_file_that_begins_anew_counts_once_and_loses_no_try(
    fetch: Fetch, folder_hub: FolderHub, waits: list[float]
) -> None:
    snapshot = without_ranges(fetch.hub).pin("team/model")
    plain = replace(snapshot, files=tuple(replace(file, xet_hash=None) for file in snapshot.files))
    folder_hub.faults.add("get", Fault(drop_after=len(BIG) - 1000), path="model.safetensors")
    assert fetch(plain, ["model.safetensors"]) == len(BIG)
    assert (fetch.folder / "model.safetensors").read_bytes() == BIG
    assert len(waits) == 1 and folder_hub.stats.requests["get"] == 2
