"""What reading holds beside the blocks, as it is told beforehand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.checkpoint import beside
from merge.checkpoint.beside import kept_bytes, reading_bytes
from merge.checkpoint.index import attach, index_adapter_folder, index_folder
from merge.checkpoint.reader import TensorReader
from tests import tiny
from tests.merge.checkpoint.codecs.case import Case
from tests.merge.checkpoint.codecs.test_codecs import write

NAME = "h.0.mlp.c_fc.weight"


def turned(rows: int, columns: int) -> Case:
    """A matrix of GPT-2 as bitsandbytes stores it."""
    codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    scale = torch.rand(rows)
    wanted = (codes.double() * scale.double()[:, None] / 127).T.numpy()
    return Case({NAME: codes, NAME.replace("weight", "SCB"): scale}, {}, NAME, wanted, "INT8")


def held(reader: TensorReader) -> int:
    """Bytes of the memory that this thread keeps for reading."""
    kept = [each for each in reader._scratch.__dict__.values() if isinstance(each, Tensor)]
    return sum(each.nbytes for each in kept)


def test_a_matrix_that_is_stored_the_other_way_round_is_read_strip_by_strip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "TURNED_ELEMENTS", 1 << 16)
    case = turned(1200, 900)
    folder = write(tmp_path, case, model_type="gpt2")
    index = index_folder(folder)
    out = torch.empty(case.wanted.size)
    with TensorReader(folder, index) as reader:
        for first in range(0, out.numel(), 50_000):
            count = min(50_000, out.numel() - first)
            reader.read_float(NAME, first, count, out[first:])
        most = held(reader)
    assert np.allclose(out.numpy(), case.wanted.reshape(-1), rtol=1e-6, atol=1e-9)
    assert most <= reading_bytes([index])
    strips = most - 4 * beside.PIECE_ELEMENTS
    assert 0 < strips < case.wanted.size * 4 / 4, "a few strips of it, not all"


def test_factors_of_an_adapter_are_counted(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base")
    shapes = {f"model.layers.{at}.self_attn.q_proj": (16, 16) for at in range(2)}
    tiny.lora(tmp_path / "lora", shapes, r=4)
    plain = index_folder(base)
    adapted = attach(plain, index_adapter_folder(tmp_path / "lora"))
    assert (kept_bytes(plain), reading_bytes([plain])) == (0, 0)
    assert kept_bytes(adapted) == 2 * 8 * 4 * 32
    assert reading_bytes([plain, adapted, replace(adapted, label="again")]) == 8 * 4 * 32
