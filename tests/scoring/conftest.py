"""Tiny models to score."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import tiny

Edit = Callable[[dict[str, Tensor]], None]


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
