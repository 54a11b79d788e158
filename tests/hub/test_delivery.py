"""Files that are read while they arrive: whole or in ranges, resumed, checked before they count."""

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from hub.delivery import Delivery
from hub.download import WORK_FOLDER, download
from hub.errors import FileMissing, HashMismatch, Interrupted, Tainted
from hub.folder_faults import Fault
from hub.folder_server import FolderHub
from hub.growing import Growing, Parcel
from hub.session import count_answers
from hub.snapshot import Hub, Snapshot
from hub.upload import Push
from tests.hub.conftest import without_ranges, write_model

Clients = Callable[..., Hub]
BIG = os.urandom(5 << 20)
NAME = "model.safetensors"


@pytest.fixture
def plain(root: Path, client: Clients) -> tuple[Hub, Snapshot]:
    """A Hub with a model of five megabytes that comes by plain HTTP."""
    write_model(root / "team/model", BIG)
    hub = client()
    pinned = hub.pin("team/model")
    return hub, replace(pinned, files=tuple(replace(file, xet_hash=None) for file in pinned.files))


def deliver(hub: Hub, *parcels: Parcel, stop: Callable[[], bool] = lambda: False) -> Delivery:
    return Delivery(hub, parcels, should_stop=stop)


def test_a_file_is_checked_whole_in_whichever_order_its_bytes_came(
    plain: tuple[Hub, Snapshot], tmp_path: Path
) -> None:
    growing = Growing(Parcel(plain[1], tmp_path / "in", NAME))
    growing.open()
    for begin, end in ((0, 1000), (500, 3000), (9000, len(BIG)), (3000, 9000)):
        growing.write(begin, BIG[begin:end])
    assert (growing.missing, growing.next_missing()) == (0, None)
    assert growing.is_right(lambda: False)
    growing.write(10, b"another")
    growing.forget()
    assert not growing.is_right(lambda: False)


def test_bytes_can_be_read_as_soon_as_they_are_there(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    parcel = Parcel(snapshot, tmp_path / "in", NAME)
    folder_hub.faults.add("get", Fault(drop_after=(4 << 20) + 1000), path=NAME)
    folder_hub.faults.add("get", Fault(delay=0.5), path=NAME)
    with deliver(hub, parcel) as delivery:
        path = parcel.folder / NAME
        delivery.wait_for(path, 0, 1000)
        assert path.stat().st_size == len(BIG)
        assert path.read_bytes()[:1000] == BIG[:1000]
        assert not delivery._growing[path].done, "the rest is still on its way"
        delivery.wait_for(path, len(BIG) - 1000, len(BIG))
        assert path.read_bytes()[-1000:] == BIG[-1000:]
        delivery.finish()
    assert path.read_bytes() == BIG
    assert not list((parcel.folder / WORK_FOLDER).glob("*.arrived"))


def test_what_was_delivered_is_a_download_that_was_checked(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    with deliver(hub, Parcel(snapshot, tmp_path / "in", NAME)) as delivery:
        delivery.finish()
    folder_hub.stats.clear()
    counted: list[int] = []
    again = [counted.append, lambda: False]
    download(hub, snapshot, tmp_path / "in", [NAME], on_bytes=again[0], should_stop=again[1])  # type: ignore[arg-type]
    assert sum(counted) == len(BIG) and not folder_hub.stats.requests


def test_only_the_ranges_that_are_wanted_come(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    spans = ((1000, 300_000), (2 << 20, (2 << 20) + 5), (len(BIG) - 7, len(BIG)))
    parcel, counted = Parcel(snapshot, tmp_path / "in", NAME, spans), []
    with Delivery(hub, [parcel], should_stop=lambda: False, on_bytes=counted.append) as delivery:
        for begin, end in spans:
            delivery.wait_for(parcel.folder / NAME, begin, end)
        delivery.finish()
    found = (parcel.folder / NAME).read_bytes()
    assert all(found[begin:end] == BIG[begin:end] for begin, end in spans)
    assert found[400_000:500_000] == bytes(100_000)
    wanted = sum(end - begin for begin, end in spans)
    assert folder_hub.stats.bytes["weight"] + folder_hub.stats.bytes["header"] == wanted
    assert sum(counted) == parcel.size == delivery.fetched == wanted
    assert (parcel.folder / NAME).stat().st_blocks * 512 < 2 << 20, "the rest takes no room"
    folder_hub.stats.clear()
    with deliver(hub, parcel) as again:
        again.finish()
    assert not folder_hub.stats.requests


def test_bytes_that_nobody_ordered_are_not_waited_for(plain: tuple[Hub, Snapshot], tmp_path: Path) -> None:
    hub, snapshot = plain
    parcel = Parcel(snapshot, tmp_path / "in", NAME, ((0, 10),))
    with deliver(hub, parcel) as delivery, pytest.raises(AssertionError, match="were not ordered"):
        delivery.wait_for(parcel.folder / NAME, 5, 11)


def test_a_broken_delivery_goes_on_where_it_was(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    parcel = Parcel(snapshot, tmp_path / "in", NAME)
    seen = [0]
    with (
        Delivery(
            hub,
            [parcel],
            should_stop=lambda: seen[0] >= 2 << 20,
            on_bytes=lambda n: seen.__setitem__(0, seen[0] + n),
        ) as delivery,
        pytest.raises(Interrupted),
    ):
        delivery.finish()
    folder_hub.stats.clear()
    with deliver(hub, parcel) as delivery:
        delivery.finish()
        assert delivery.fetched <= len(BIG) - (2 << 20)
    assert (parcel.folder / NAME).read_bytes() == BIG


def test_wrong_bytes_that_nobody_used_are_fetched_again(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    folder_hub.faults.add("get", Fault(corrupt=True), path=NAME)
    with deliver(hub, Parcel(snapshot, tmp_path / "in", NAME)) as delivery:
        delivery.finish()
    assert (tmp_path / "in" / NAME).read_bytes() == BIG


def test_a_merge_that_looks_at_a_file_while_it_is_forgotten_sees_its_full_size(
    plain: tuple[Hub, Snapshot], tmp_path: Path
) -> None:
    growing = Growing(Parcel(plain[1], tmp_path / "in", NAME))
    growing.open()
    growing.write(0, BIG[:1000])
    growing.note()
    os.utime(growing.target.path, (1, 1))
    growing.forget()
    after = growing.target.path.stat()
    assert after.st_mtime == 1, "never touched, so never shorter for a moment"
    assert after.st_size == len(BIG)
    assert not growing.has(0, 1000)


def test_wrong_bytes_that_were_used_end_the_delivery_and_are_forgotten(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    parcel = Parcel(snapshot, tmp_path / "in", NAME)
    folder_hub.faults.add("get", Fault(corrupt=True), path=NAME)
    with deliver(hub, parcel) as delivery, pytest.raises(Tainted):
        delivery.wait_for(parcel.folder / NAME, 0, 10)  # which says so, where all of it has come by then
        delivery.finish()
    with deliver(hub, parcel) as delivery:
        delivery.finish()
    assert (parcel.folder / NAME).read_bytes() == BIG


def test_content_that_is_always_wrong_is_refused(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    folder_hub.faults.add("get", Fault(corrupt=True), path=NAME, times=9)
    with deliver(hub, Parcel(snapshot, tmp_path / "in", NAME)) as delivery, pytest.raises(HashMismatch):
        delivery.finish()


def test_a_range_of_a_file_that_the_hub_has_changed_is_refused(
    plain: tuple[Hub, Snapshot], tmp_path: Path
) -> None:
    hub, snapshot = plain
    files = tuple(replace(file, sha256="0" * 64) if file.sha256 else file for file in snapshot.files)
    parcel = Parcel(replace(snapshot, files=files), tmp_path / "in", NAME, ((0, 10),))
    with deliver(hub, parcel) as delivery, pytest.raises(HashMismatch, match="offers other content"):
        delivery.finish()


@pytest.mark.parametrize("fault", [Fault(shift=8), Fault(status=200, message="down for a moment " * 99)])
def test_a_range_that_was_not_asked_for_and_a_page_are_not_taken_for_bytes_of_the_file(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path, fault: Fault
) -> None:
    hub, snapshot = plain
    parcel = Parcel(snapshot, tmp_path / "in", NAME, ((500, 300_000),))
    folder_hub.faults.add("get", fault, path=NAME)
    with deliver(hub, parcel) as delivery:
        delivery.finish()
    assert (parcel.folder / NAME).read_bytes()[500:300_000] == BIG[500:300_000]


def test_connections_that_break_after_a_part_of_a_piece_bring_the_file_all_the_same(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    folder_hub.faults.add("get", Fault(drop_after=600_000), path=NAME, times=8)
    with deliver(hub, Parcel(snapshot, tmp_path / "in", NAME)) as delivery:
        delivery.finish()
        assert delivery.fetched == len(BIG)


def test_what_the_hub_says_reaches_those_who_wait(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    parcel = Parcel(snapshot, tmp_path / "in", NAME)
    folder_hub.faults.add("get", Fault(status=404, code="EntryNotFound"), path=NAME, times=99)
    caught: list[BaseException] = []
    with deliver(hub, parcel) as delivery:

        def wait() -> None:
            try:
                delivery.wait_for(parcel.folder / NAME, 0, 10)
            except Exception as error:
                caught.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(10)
    assert [type(each).__name__ for each in caught] == ["FileMissing"]


def test_by_xet_a_file_is_seen_only_when_it_is_whole_and_checked(client: Clients, tmp_path: Path) -> None:
    hub = client()
    push = Push(hub, "team/pushed", job_id="job_1")
    (tmp_path / "w.safetensors").write_bytes(BIG)
    push.add_file(NAME, tmp_path / "w.safetensors")
    push.commit("push", {"config.json": b"{}"})
    parcel = Parcel(hub.pin("team/pushed"), tmp_path / "in", NAME)
    assert parcel.file.xet_hash is not None
    with deliver(hub, parcel) as delivery:
        delivery.wait_for(parcel.folder / NAME, 0, 10)
        assert (parcel.folder / NAME).read_bytes() == BIG
        delivery.finish()


def test_bytes_left_by_a_killed_process_taint_what_it_made_if_they_are_wrong(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    parcel = Parcel(snapshot, tmp_path / "in", NAME)
    folder_hub.faults.add("get", Fault(corrupt=True, drop_after=4 << 20), path=NAME)
    folder_hub.faults.add("get", Fault(status=404, code="EntryNotFound"), path=NAME)
    with deliver(hub, parcel) as delivery, pytest.raises(FileMissing):
        delivery.finish()
    with deliver(hub, parcel) as delivery, pytest.raises(Tainted):
        delivery.finish()
    with deliver(hub, parcel) as delivery:
        delivery.finish()
    assert (parcel.folder / NAME).read_bytes() == BIG


def test_answers_are_counted_by_route_and_never_by_name(
    plain: tuple[Hub, Snapshot], folder_hub: FolderHub, tmp_path: Path
) -> None:
    hub, snapshot = plain
    heard: list[tuple[str, int]] = []
    end = count_answers(lambda route, status: heard.append((route, status)))
    hub.pin("team/model")
    with deliver(hub, Parcel(snapshot, tmp_path / "in", NAME)) as delivery:
        delivery.finish()
    end()
    hub.pin("team/model")
    assert {route for route, _ in heard} == {"info", "tree", "resolve"}
    assert len(heard) == 3 and all(status in (200, 206) for _, status in heard)


@pytest.mark.parametrize("used", [False, True])
def test_a_file_that_begins_anew_counts_once_and_taints_what_used_it(
    plain: tuple[Hub, Snapshot],
    folder_hub: FolderHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    used: bool,
) -> None:
    class Used(Growing):
        def open(self) -> None:
            super().open()
            self.used = used

    hub, snapshot = plain
    counts = list[int]()
    monkeypatch.setattr("hub.delivery.Growing", Used)
    folder_hub.faults.add("get", Fault(drop_after=(4 << 20) + 1000), path=NAME)
    parcels = [Parcel(snapshot, tmp_path / "in", NAME)]
    delivery = Delivery(without_ranges(hub), parcels, should_stop=lambda: False, on_bytes=counts.append)
    with delivery, pytest.raises(Tainted) if used else nullcontext():
        delivery.finish()
    if not used:
        assert sum(counts) == len(BIG)
        assert (tmp_path / "in" / NAME).read_bytes() == BIG
