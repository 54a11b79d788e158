"""Models that slices are taken of."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.merge import exact
from tests.merge.planning.slices import shapes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Models of four layers, ``deep`` of six; each in five files."""
    root = tmp_path_factory.mktemp("models")
    config = {"num_hidden_layers": 4, "layer_types": list("wxyz")}
    made = {
        name: exact.write(root / name, name, shapes(4), config=config, shards=5)
        for name in ("base", "a", "b")
    }
    deep = {"num_hidden_layers": 6, "layer_types": list("pqrstu")}
    return {**made, "deep": exact.write(root / "deep", "deep", shapes(6), config=deep, shards=5)}
