"""Uploading beside merging."""

import threading
import time
from pathlib import Path

import pytest

from worker.errors import Interrupted, Stop
from worker.uploads import Uploads


def nothing() -> None:
    """No reason to stop."""


def test_every_shard_arrives_and_merging_does_not_wait_for_them() -> None:
    sent: list[str] = []
    gate = threading.Semaphore(0)

    def send(name: str, _path: Path) -> None:
        gate.acquire()
        sent.append(name)

    with Uploads(send, nothing) as uploads:
        for number in range(6):
            uploads.add(str(number), Path("x"))
        assert sent == []
        for _ in range(6):
            gate.release()
        uploads.finish()
    assert sorted(sent) == [str(number) for number in range(6)]


@pytest.mark.parametrize("failure", [OSError("gone"), TimeoutError("slow")])
def test_a_failed_upload_stops_the_merge_with_its_own_error(failure: OSError) -> None:
    def send(_name: str, _path: Path) -> None:
        raise failure

    with Uploads(send, nothing) as uploads, pytest.raises(type(failure), match=str(failure)):
        uploads.add("a", Path("a"))
        uploads.finish()


def test_a_stopped_job_does_not_wait_for_a_hanging_upload() -> None:
    release = threading.Event()
    stop = False

    def checkpoint() -> None:
        if stop:
            raise Interrupted(Stop.CANCEL)

    def send(_name: str, _path: Path) -> None:
        release.wait(10)

    started = time.monotonic()
    with pytest.raises(Interrupted), Uploads(send, checkpoint) as uploads:
        uploads.add("a", Path("a"))
        stop = True
        uploads.finish()
    assert time.monotonic() - started < 2
    release.set()
