"""Stored parts: whichever columns of them are asked for, and masked changes wherever they begin."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge.checkpoint import beside, stored
from merge.checkpoint.adapter import Masked
from merge.checkpoint.files import OpenFiles
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.stored import StoredParts, add_masked
from merge.file_errors import FileUnreadable


def parts_of(folder: Path, *tensors: Tensor) -> tuple[StoredParts, list[TensorInfo]]:
    names = {torch.int16: "I16", torch.uint8: "U8", torch.float32: "F32"}
    infos, raw = [], b""
    for number, each in enumerate(tensors):
        content = each.numpy().tobytes()
        infos.append(
            TensorInfo(
                f"m.{number}", names[each.dtype], tuple(each.shape), "w", len(raw), len(raw) + len(content)
            )
        )
        raw += content
    (folder / "w").write_bytes(raw)
    return StoredParts(
        OpenFiles(folder, "model"), lambda _, count, dtype: torch.empty(count, dtype=dtype)
    ), infos


def test_columns_are_those_of_the_part_in_whatever_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "WHOLE_BYTES", 0)
    monkeypatch.setattr(beside, "STRIP_BYTES", 0)  # so 64 columns at a time
    values = torch.arange(7 * 300, dtype=torch.int16).view(7, 300)
    parts, (info,) = parts_of(tmp_path, values)
    for first, last in ((0, 8), (40, 64), (56, 72), (64, 300), (280, 300), (70, 71), (0, 300), (8, 80)):
        assert torch.equal(parts.columns(info, first, last), values[:, first:last])


@pytest.mark.parametrize("first", [0, 3, 8, 13])
def test_a_masked_change_begins_at_any_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(stored, "MASKED_ELEMENTS", 16)
    chosen = torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.5
    mask = torch.zeros(7, dtype=torch.uint8)
    for at in chosen.nonzero().view(-1).tolist():
        mask[at // 8] |= 1 << at % 8
    vector = torch.arange(1.0, 51.0)
    parts, (vector_info, mask_info) = parts_of(tmp_path, vector, mask)
    out = torch.ones(50 - first)
    add_masked(Masked(vector_info, mask_info, 2.0), first, out, parts)
    assert torch.equal(out, (1 + 2 * vector * chosen)[first:])


def test_columns_across_the_end_of_a_strip_begin_another_as_wide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "WHOLE_BYTES", 0)
    monkeypatch.setattr(beside, "STRIP_BYTES", 0)
    values = torch.arange(7 * 300, dtype=torch.int16).view(7, 300)
    parts, (info,) = parts_of(tmp_path, values)
    for first in range(0, 290, 18):
        parts.columns(info, first, first + 18)
        assert parts.strips["0"].lines.shape[1] <= beside.LEAST_COLUMNS


def test_a_strip_that_could_not_be_read_leaves_none_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "WHOLE_BYTES", 0)
    monkeypatch.setattr(beside, "STRIP_BYTES", 0)
    values = torch.arange(7 * 300, dtype=torch.int16).view(7, 300)
    parts, (info,) = parts_of(tmp_path, values)
    memory = torch.empty(7 * 300, dtype=torch.int16)
    parts = replace(parts, buffer=lambda _, count, __: memory[:count])
    parts.columns(info, 0, 8)
    with monkeypatch.context() as patch, pytest.raises(FileUnreadable):
        patch.setattr(OpenFiles, "read_pieces", broken_off)
        parts.columns(info, 200, 208)
    assert torch.equal(parts.columns(info, 0, 8), values[:, :8])


def broken_off(_: OpenFiles, name: str, __: object, ___: int, buffer: memoryview) -> None:
    buffer[: len(buffer) // 2] = bytes(len(buffer) // 2)
    raise FileUnreadable(name)
