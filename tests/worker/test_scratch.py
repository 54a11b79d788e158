"""Work folders."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.scratch import bytes_in
from worker.errors import DiskBusy, DiskFull, WorkFolderBusy
from worker.scratch import (
    RESERVE_BYTES,
    WorkFolder,
    clean,
    ensure_room,
    forget_candidates,
    is_linked,
    mark_finished,
    remove_idle,
)


def fill(folder: Path, name: str, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(os.urandom(size))


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))


def test_two_processes_never_work_in_one_folder(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, "job_1"):
        code = (
            "import sys; from pathlib import Path\n"
            "from worker.errors import WorkFolderBusy\nfrom worker.scratch import WorkFolder\n"
            "try:\n    WorkFolder(Path(sys.argv[1]), 'job_1').__enter__()\n"
            "except WorkFolderBusy: sys.exit(7)"
        )
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 7
        with WorkFolder(tmp_path, "job_2"):
            pass
    with WorkFolder(tmp_path, "job_1"):
        pass


def test_a_busy_folder_is_a_reason_to_come_back() -> None:
    assert WorkFolderBusy.retryable and not DiskFull.retryable


def test_a_finished_job_leaves_nothing_and_an_unfinished_one_keeps_its_shards(tmp_path: Path) -> None:
    for keep in (True, False):
        with WorkFolder(tmp_path, "job_1") as work:
            fill(work.output, "shard", 10)
            work.finish(keep=keep)
        assert (work.output / "shard").exists() is keep
    assert not work.path.exists()


def test_too_little_disk_is_refused_before_the_download_with_both_numbers(tmp_path: Path) -> None:
    with (
        WorkFolder(tmp_path, "job_1") as work,
        pytest.raises(DiskFull, match=r"5\.06 GiB more .* 1\.00 GiB are free"),
    ):
        ensure_room(work, 5 << 30, free=lambda _: 1 << 30)


def test_what_is_already_there_counts(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, "job_1") as work:
        fill(work.inputs, "shard", 1 << 20)
        needed = 3 << 20
        free = needed - bytes_in(work.path) + RESERVE_BYTES
        with pytest.raises(DiskFull):
            ensure_room(work, needed, free=lambda _: free - 1)
        ensure_room(work, needed, free=lambda _: free)


def test_two_names_of_one_file_take_its_room_once(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, "job_1") as work:
        fill(work.output, "shard", 1 << 20)
        before = bytes_in(work.path)
        lent = work.borrow(work.output / "shard")
        assert lent.stat().st_size == 1 << 20 and bytes_in(work.path) == before
        work.discard_output()
        assert bytes_in(work.path) < 1 << 20


def test_a_retry_that_comes_while_its_folder_is_removed_has_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WorkFolder(tmp_path, "job_1") as old:
        fill(old.inputs, "model.safetensors", 10)
    remove, retried = shutil.rmtree, WorkFolder(tmp_path, "job_1")

    def interrupted(folder: Path, **options: bool) -> None:
        if (folder / "lock").exists():
            (folder / "lock").unlink()  # the first of its files to go
            with retried:
                assert not retried.inputs.exists()
                fill(retried.inputs, "model.safetensors", 10)
        remove(folder, **options)

    monkeypatch.setattr("worker.scratch.shutil.rmtree", interrupted)
    assert remove_idle(old.path)
    assert (retried.inputs / "model.safetensors").exists()
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["job_1"]


def test_folders_of_ended_jobs_make_room_oldest_first(tmp_path: Path) -> None:
    for root_id, seconds in (("job_old", 300.0), ("job_new", 100.0), ("job_live", 500.0)):
        with WorkFolder(tmp_path, root_id) as work:
            fill(work.output, "shard", 1 << 20)
            if root_id != "job_live":
                work.finish(keep=True)
        age(work.path, seconds)
    room = RESERVE_BYTES + (1 << 20)
    with WorkFolder(tmp_path, "job_1") as work:
        ensure_room(work, 1 << 20, free=lambda _: room if not (tmp_path / "jobs/job_old").exists() else 0)
        assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["job_1", "job_live", "job_new"]


def test_jobs_that_begin_at_once_are_not_given_the_same_room(tmp_path: Path) -> None:
    free = RESERVE_BYTES + (5 << 20)
    with WorkFolder(tmp_path, "job_1") as first, WorkFolder(tmp_path, "job_2") as second:
        ensure_room(first, 3 << 20, free=lambda _: free)
        with pytest.raises(DiskBusy):
            ensure_room(second, 3 << 20, free=lambda _: free)
        fill(first.inputs, "model.safetensors", 2 << 20)
        ensure_room(second, 3 << 20, free=lambda _: free)
    with WorkFolder(tmp_path, "job_3") as third:
        ensure_room(third, 5 << 20, free=lambda _: free)


def test_a_folder_that_somebody_else_removes_meanwhile_is_no_matter(tmp_path: Path) -> None:
    mark = tmp_path / "jobs" / "job_old" / "finished"
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            mark.unlink()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        with WorkFolder(tmp_path, "job_1") as work:
            for _ in range(3000):
                ensure_room(work, 1, free=lambda _: RESERVE_BYTES + 1)
    finally:
        ended.set()
        other.join()


def test_only_folders_that_nobody_uses_grow_too_old(tmp_path: Path) -> None:
    for root_id in ("job_old", "job_busy", "job_young"):
        with WorkFolder(tmp_path, root_id) as work:
            fill(work.output, "shard", 10)
        if root_id != "job_young":
            age(work.path, 7200)
    with WorkFolder(tmp_path, "job_busy"):
        age(tmp_path / "jobs/job_busy", 7200)
        assert clean(tmp_path, 3600) == ["job_old"]
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["job_busy", "job_young"]


def test_what_is_no_work_folder_keeps_none_from_being_removed(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, "job_1"), WorkFolder(tmp_path, "job_2"):
        pass
    (tmp_path / "jobs" / ".DS_Store").touch()
    (tmp_path / "jobs" / "job_2" / "lock").unlink()
    (tmp_path / "jobs" / "job_2" / "lock").symlink_to("../.DS_Store")
    assert clean(tmp_path, 10.0, now=lambda: time.time() + 60) == ["job_1"]
    assert mark_finished(tmp_path, set) == []
    (tmp_path / "jobs" / "job_2" / "room").write_text("1")
    with WorkFolder(tmp_path, "job_3") as work:
        ensure_room(work, 1, free=lambda _: 1 << 40)


def test_candidates_of_dead_workers_go_whatever_their_age_and_those_in_use_stay(tmp_path: Path) -> None:
    for root_id in ("job_dead", "job_busy"):
        with WorkFolder(tmp_path, root_id) as work:
            fill(work.candidate, "model.safetensors", 10)
            fill(work.inputs, "model.safetensors", 10)
    with WorkFolder(tmp_path, "job_busy") as busy:
        assert forget_candidates(tmp_path) == ["job_dead"]
        assert busy.candidate.is_dir()
    dead = WorkFolder(tmp_path, "job_dead")
    assert not dead.candidate.exists() and dead.inputs.is_dir()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_no_lock(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, "job_1") as work:
        path = work.path / "lock"
        held = os.open(path, os.O_RDWR)
        assert is_linked(held, path)
        path.unlink()
        assert not is_linked(held, path)
        path.touch()
        assert not is_linked(held, path)
        os.close(held)
