"""Fixtures of the command line's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import scratch_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """One in which embedded servers keep their data, also where they run as another user."""
    with scratch_folder() as made:
        yield made
