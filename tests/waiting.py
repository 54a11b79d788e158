"""Waiting for what happens elsewhere: in a thread, another process, the database."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 20.0, pause: float = 0.01) -> None:
    """Returns when it holds; fails the test after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)
