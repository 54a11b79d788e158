"""Stored parts of tensors that are not read as they lie: those of a code, and masked changes of a bundle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from merge.checkpoint.adapter import Masked
from merge.checkpoint.beside import WHOLE_BYTES, strip_columns
from merge.checkpoint.dtype import as_bytes, torch_dtype
from merge.checkpoint.header import TensorInfo
from merge.kernels.bits import unpack

TURNED = "turned"
"""Under which name strips of decoded matrices are kept."""
MASKED_ELEMENTS = 1 << 16
"""Entries of a masked change at a time."""


class Files(Protocol):
    """The open files of a folder."""

    def read(self, name: str, offset: int, buffer: memoryview, *, ahead: bool = True) -> None:
        """Fills the buffer from that byte on; with ``ahead`` what follows is asked for ahead of use."""

    def read_pieces(self, name: str, starts: Sequence[int], size: int, buffer: memoryview) -> None:
        """Pieces of ``size`` bytes that begin at these bytes, in rising order, one after another into the
        buffer.
        """


@dataclass(frozen=True)
class At:
    """Where stored numbers begin: in the open file ``fd`` at this byte."""

    fd: int
    begin: int
    dtype: str


class Changing(Protocol):
    """Adds masked changes to stored tensors in one go; ``False`` where that must be done otherwise."""

    def masked(self, base: At, vector: At, mask: At, bit: int, scale: float, out: Tensor) -> bool:
        """Stored entries plus the scaled ones of the vector, where the mask has ones from this bit on."""


class Multiplying(Protocol):
    """Adds products of factors to stored tensors in one go."""

    def laid(self, left: Tensor, right: Tensor, tile: int, stored: str) -> Any:
        """Factors (rows, r) and (r, columns) of a tensor of the dtype ``stored``, as ``added`` takes them;
        ``None`` where torch, multiplying ``tile`` rows at a time, gives other bits.
        """

    def added(self, base: At, laid: Any, first: int, out: Tensor) -> int:
        """Stored entries from ``first`` on plus those of the product; how many could be made so."""


@dataclass(frozen=True)
class Pair:
    """Factors (rows, r), with the scale in it, and (r, columns) of a change, and ``laid`` out for whom adds
    their product to what is stored, if somebody does.
    """

    left: Tensor
    right: Tensor
    laid: Any = None


@dataclass(frozen=True)
class Strip:
    """Columns ``begin`` to ``end`` of all lines of a stored part, as they were read last; or rows of a
    matrix, as they were decoded last.
    """

    part: tuple[str, int]
    begin: int
    end: int
    lines: Tensor


@dataclass(frozen=True)
class StoredParts:
    """The stored parts of coded tensors, as ``merge.checkpoint.codecs`` asks for them."""

    files: Files
    buffer: Callable[[str, int, torch.dtype], Tensor]
    strips: dict[str, Strip] = field(default_factory=dict)
    """What this thread has read last of each kind of part."""

    def read(self, part: TensorInfo, first: int, count: int) -> Tensor:
        dtype = torch_dtype(part.dtype, part.name)
        piece = self.buffer(f"part {part.name.rpartition('.')[2]}", count, dtype)
        if count:
            self.files.read(part.file, part.begin + first * piece.element_size(), as_bytes(piece))
        return piece

    def columns(self, part: TensorInfo, first: int, last: int) -> Tensor:
        use, width = part.name.rpartition(".")[2], part.shape[-1]
        held = self.strips.get(use)
        at = (part.file, part.begin)
        if held is None or held.part != at or first < held.begin or last > held.end:
            self.strips.pop(use, None)  # the memory is the same
            held = self.strips[use] = self._strip(use, part, first, min(last, width))
        return held.lines[:, first - held.begin : last - held.begin]

    def strip_of(self, tensor: TensorInfo, first: int, last: int, fill: Callable[[Tensor], None]) -> Tensor:
        held, at = self.strips.get(TURNED), (tensor.file, tensor.begin)
        if held is None or (held.part, held.begin, held.end) != (at, first, last):
            width = tensor.shape[-1]
            strip = self.buffer(TURNED, (last - first) * width, torch.float32).view(-1, width)
            self.strips.pop(TURNED, None)  # the memory is the same
            fill(strip)
            held = self.strips[TURNED] = Strip(at, first, last, strip)
        return held.lines

    def _strip(self, use: str, part: TensorInfo, first: int, last: int) -> Strip:
        """A strip with these columns and some that follow, so that few strips make up a part."""
        dtype, width = torch_dtype(part.dtype, part.name), part.shape[-1]
        lines = part.numel // max(width, 1)
        begin, end = first, min(width, max(last, first + strip_columns(lines, dtype.itemsize)))
        if lines * width * dtype.itemsize <= WHOLE_BYTES:
            begin, end = 0, width
        strip = self.buffer(f"strip {use}", lines * (end - begin), dtype).view(lines, end - begin)
        if end - begin == width:
            self.files.read(part.file, part.begin, as_bytes(strip.view(-1)))
        else:
            flat, size = as_bytes(strip.view(-1)), (end - begin) * dtype.itemsize
            starts = range(part.begin + begin * dtype.itemsize, part.end, width * dtype.itemsize)
            self.files.read_pieces(part.file, starts, size, flat)
        return Strip((part.file, part.begin), begin, end, strip)


def add_masked(masked: Masked, first: int, out: Tensor, parts: StoredParts) -> None:
    """Adds the scaled vector to entries ``first`` onwards, where the mask has their bits; ``out`` is flat."""
    vector, mask = masked.vector, masked.mask
    dtype = torch_dtype(vector.dtype, vector.name)
    for done in range(0, out.numel(), MASKED_ELEMENTS):
        size = min(MASKED_ELEMENTS, out.numel() - done)
        at = first + done
        begin, end = at // 8, -(-(at + size) // 8)
        codes = parts.buffer("mask", MASKED_ELEMENTS // 8 + 2, torch.uint8)[: end - begin]
        parts.files.read(mask.file, mask.begin + begin, as_bytes(codes), ahead=False)
        bits = parts.buffer("bits", MASKED_ELEMENTS + 16, torch.float32)[: 8 * (end - begin)]
        unpack(codes, bits)
        stored = parts.buffer("vector", MASKED_ELEMENTS, dtype)[:size]
        parts.files.read(vector.file, vector.begin + at * dtype.itemsize, as_bytes(stored))
        wide = parts.buffer("wide", MASKED_ELEMENTS, out.dtype)[:size].copy_(stored)
        chosen = bits[at - 8 * begin : at - 8 * begin + size].to(out.dtype)
        out[done : done + size].addcmul_(wide, chosen, value=masked.scale)
