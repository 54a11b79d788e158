"""What whole runs are tried on."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.merge import exact


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A base and three models by name, each in two shards."""
    return exact.family(tmp_path_factory.mktemp("family"), shards=2)
