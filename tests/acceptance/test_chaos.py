"""The short form of the crash test."""

from pathlib import Path

import psutil
import pytest

from tests.acceptance.chaos import VICTIMS, Script, run
from tests.acceptance.stack import Stack, wait_for


@pytest.mark.chaos
def test_no_kill_at_any_moment_loses_or_repeats_anything(tmp_path: Path, postgres_url: str) -> None:
    outcome = run(Script(jobs=5, kills=6, seed=20260101), tmp_path, postgres_url)
    assert set(outcome.kills) == set(VICTIMS)


@pytest.mark.chaos
def test_a_worker_that_gives_up_is_started_again(tmp_path: Path, postgres_url: str) -> None:
    """As Celery does when a first child dies before the parent listens: else its jobs would wait for ever."""
    stack = Stack(tmp_path, postgres_url, "http://127.0.0.1:9")
    worker = stack.worker
    try:
        worker.start()  # without a broker it tries to reach it, and does not listen yet
        psutil.Process(wait_for(worker.children, "a child")[0]).kill()
        stack.valkey.start()
        assert worker.handle is not None
        ended = worker.handle.wait(30)
        assert ended == 1
        stack.revive()
        wait_for(lambda: " ready." in worker.log.read_text(), "the worker listens")
        assert worker.handle.poll() is None
    finally:
        stack._end()
