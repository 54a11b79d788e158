"""From stored codes to numbers: one module a scheme, each a function that decodes whole rows.

A row is a line of the last dimension. Rows are decoded a piece at a time into the caller's memory, and an
entry's value depends on nothing but what is stored, so that no block size can change a bit.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from merge.checkpoint.beside import PIECE_ELEMENTS, strip_rows
from merge.checkpoint.codecs import awq, bitsandbytes, fp4, gguf, gptq, packed, reversible, scaled
from merge.checkpoint.codecs.parts import Parts
from merge.checkpoint.header import Coded, TensorInfo


class Rows(Protocol):
    """Decodes rows ``first`` to ``first + len(out)`` of a tensor into ``out``, float32 of (rows, columns)."""

    def __call__(self, coded: Coded, first: int, out: Tensor, parts: Parts) -> None: ...


SCHEMES: Mapping[str, Rows] = {
    "awq": awq.rows,
    "awq_gemv": awq.gemv_rows,
    "awq_gemv_fast": awq.fast_rows,
    "bitsandbytes": bitsandbytes.rows,
    "gguf": gguf.rows,
    "gptq": gptq.rows,
    "mxfp4": fp4.transposed_rows,
    "nvfp4": fp4.rows,
    "packed": packed.rows,
    "reversible": reversible.rows,
    "scaled": scaled.rows,
}
"""What ``Coded.scheme`` may be."""


def decode(info: TensorInfo, first: int, out: Tensor, parts: Parts, scratch: Callable[[int], Tensor]) -> None:
    """Entries ``first`` onwards (flat, row-major) of a coded tensor into ``out``, flat, any float dtype.

    ``scratch`` gives float32 memory of at least so many entries, for rows that are needed in part.
    """
    assert info.coded is not None  # the reader asks for coded tensors alone
    if "transposed" in info.coded.settings:
        _transposed(info, info.coded, first, out, parts, scratch)
        return
    rows = SCHEMES[info.coded.scheme]
    columns, align, end = max(1, info.shape[-1]) if info.shape else 1, info.coded.align, first + out.numel()
    most = max(1, PIECE_ELEMENTS // columns // align) * align
    row = first // columns // align * align
    while row * columns < end:
        last = min(row + most, info.numel // columns)
        begin, stop = row * columns, last * columns
        whole = begin >= first and stop <= end
        if whole and out.dtype == torch.float32 and (begin - first) % 2 == 0:  # pairs are written as one
            rows(info.coded, row, out[begin - first : stop - first].view(-1, columns), parts)
        else:
            piece = scratch(stop - begin)[: stop - begin]
            rows(info.coded, row, piece.view(-1, columns), parts)
            low, high = max(begin, first), min(stop, end)
            out[low - first : high - first].copy_(piece[low - begin : high - begin])
        row = last


def _transposed(
    info: TensorInfo, coded: Coded, first: int, out: Tensor, parts: Parts, scratch: Callable[[int], Tensor]
) -> None:
    """Of a matrix that is stored the other way round (GPT-2's kin), strip by strip: all that is stored has to
    be decoded for any of its rows, so the thread keeps a strip of them for the next entries.
    """
    height, width = info.shape
    each, end = strip_rows(height, width), first + out.numel()
    for begin in range(first // width // each * each, -(-end // width), each):
        last = min(begin + each, height)
        strip = parts.strip_of(info, begin, last, partial(_fill, coded, begin, height, parts, scratch))
        low, high = max(begin * width, first), min(last * width, end)
        out[low - first : high - first].copy_(strip.view(-1)[low - begin * width : high - begin * width])


def _fill(
    coded: Coded, begin: int, columns: int, parts: Parts, scratch: Callable[[int], Tensor], out: Tensor
) -> None:
    """Stored columns (of so many) from ``begin`` on, as the rows of ``out``."""
    most = max(1, PIECE_ELEMENTS // columns // coded.align) * coded.align
    for first in range(0, out.shape[1], most):
        count = min(most, out.shape[1] - first)
        piece = scratch(count * columns)[: count * columns].view(count, columns)
        SCHEMES[coded.scheme](coded, first, piece, parts)
        out[:, first : first + count].copy_(piece[:, begin : begin + len(out)].T)
