"""Tiny models to score."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import tiny

Edit = Callable[[dict[str, Tensor]], None]


def renumber(folder: Path, token: str, number: int) -> None:
    """Gives a token of the folder's tokenizer another id."""
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["vocab"][token] = number
    file.write_text(json.dumps(document))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer."""
    return tiny.llama(tmp_path / "llama")


@pytest.fixture
def edit(model: Path) -> Callable[[Edit], Path]:
    """Changes the tensors of ``model`` in its file."""

    def change(edits: Edit) -> Path:
        tensors = load_file(model / "model.safetensors")
        edits(tensors)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        return model

    return change
