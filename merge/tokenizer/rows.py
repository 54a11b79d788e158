"""Reading a tensor by a row table: rows that lie together are read together, the others one by one."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.dtype import as_bytes
from merge.checkpoint.reader import TensorReader
from merge.file_errors import FileSizeMismatch
from merge.tokenizer.align import Fill, RowTable
from merge.tokenizer.planned import TILE_ROWS


@dataclass(frozen=True)
class MadeRows:
    """Computed rows of one model's tensor: the first byte in the file and each row's slot; ``width`` numbers
    of ``dtype`` a slot.
    """

    begin: int
    slots: Mapping[int, int]
    width: int
    dtype: torch.dtype


class MadeFile:
    """The rows that were computed before the run; any number of threads may read."""

    def __init__(self, path: Path, parts: Mapping[tuple[str, str], MadeRows]) -> None:
        self.parts = parts
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, part: MadeRows, row: int, first: int, count: int, out: Tensor) -> None:
        """Numbers ``first`` to ``first + count`` of one row into ``out`` (of the file's dtype)."""
        width = out.element_size()
        offset = part.begin + (part.slots[row] * part.width + first) * width
        if os.preadv(self._fd, [as_bytes(out[:count])], offset) != count * width:
            raise FileSizeMismatch("The file of computed embedding rows was cut short; run again.")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


class TableReader:
    """Entries of tensors whose rows are rearranged, from the readers of all models; ``told`` says how the
    computed ones came out.
    """

    def __init__(
        self,
        readers: Mapping[str, TensorReader],
        tables: Mapping[str, RowTable],
        made: MadeFile | None = None,
        told: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.told = told
        self._readers = readers
        self._tables = tables
        self._made = made

    def read(self, table: str, tensor: str, first: int, count: int, out: Tensor) -> None:
        """Entries ``first`` to ``first + count`` of a model's tensor as the result's vocabulary has them, to
        ``out`` (flat, of compute dtype).
        """
        known = self._tables[table]
        width = prod(self._readers[known.model].index.tensors[tensor].shape[1:])
        gathered = _Gathered(self._readers, tensor, width, out)
        at, end = first, first + count
        while at < end:
            row, skip = divmod(at, width)
            size = min(width - skip, end - at)
            lender = _lender(known, row)
            if lender is not None and size == width:
                gathered.add(*lender, at - first)
            else:
                self._part(known, tensor, row, skip, out[at - first : at - first + size])
            at += size
        gathered.flush()

    def _part(self, table: RowTable, tensor: str, row: int, skip: int, out: Tensor) -> None:
        """A row that no model has as it is, or a part of one: from ``skip`` numbers after its beginning."""
        fill: Fill | None = (
            ((table.model, table.rows[row]),) if table.rows[row] >= 0 else table.fills.get(row)
        )
        if fill is None:
            assert self._made is not None  # rows that are neither own nor filled were made before the run
            self._made.read(self._made.parts[table.model, tensor], row, skip, out.numel(), out)
            return
        out.zero_()
        for place, (model, lent) in enumerate(fill):
            info = self._readers[model].index.tensors[tensor]
            whole = torch.empty(prod(info.shape[1:]), dtype=out.dtype)
            self._readers[model].read_rows(tensor, (lent,), whole)
            part = whole[skip : skip + out.numel()]
            out.add_(part) if place else out.copy_(part)
        if len(fill) > 1:
            out.div_(len(fill))


class _Gathered:
    """Whole rows of one model that follow each other in the result, read together."""

    def __init__(self, readers: Mapping[str, TensorReader], tensor: str, width: int, out: Tensor) -> None:
        self._readers, self._tensor, self._width, self._out = readers, tensor, width, out
        self._model, self._rows, self._begin = "", list[int](), 0

    def add(self, model: str, row: int, at: int) -> None:
        """Asks for a row at entry ``at`` of the block."""
        if model != self._model or at != self._begin + len(self._rows) * self._width:
            self.flush()
            self._model, self._begin = model, at
        self._rows.append(row)

    def flush(self) -> None:
        """Reads what was asked for."""
        if self._rows:
            piece = self._out[self._begin : self._begin + len(self._rows) * self._width]
            self._readers[self._model].read_rows(self._tensor, self._rows, piece)
            self._rows = []


def _lender(table: RowTable, row: int) -> tuple[str, int] | None:
    """The model and its row that a row of the result is a copy of."""
    if table.rows[row] >= 0:
        return table.model, table.rows[row]
    fill = table.fills.get(row)
    return fill[0] if fill is not None and len(fill) == 1 else None


class PickedRows:
    """Some rows of a stored tensor, as ``approximate`` wants them."""

    def __init__(self, reader: TensorReader, tensor: str, rows: Sequence[int]) -> None:
        shape = reader.index.tensors[tensor].shape
        self._reader, self._tensor, self._rows = reader, tensor, rows
        self.count, self.width = len(rows), prod(shape[1:])

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """First position and float32 rows, in order."""
        for first in range(0, self.count, TILE_ROWS):
            yield first, self.take(range(first, min(first + TILE_ROWS, self.count)))

    def take(self, positions: Sequence[int]) -> Tensor:
        """float32 rows (len(positions), width)."""
        out = torch.empty(len(positions), self.width)
        self._reader.read_rows(self._tensor, [self._rows[at] for at in positions], out.view(-1))
        return out


class HeldRows:
    """The same rows, all in memory."""

    def __init__(self, rows: PickedRows) -> None:
        self.count, self.width = rows.count, rows.width
        self._rows = (
            torch.cat([tile for _, tile in rows.tiles()]) if rows.count else torch.empty(0, rows.width)
        )

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """First position and float32 rows, in order."""
        for first in range(0, self.count, TILE_ROWS):
            yield first, self._rows[first : first + TILE_ROWS]

    def take(self, positions: Sequence[int]) -> Tensor:
        """float32 rows (len(positions), width)."""
        return self._rows[list(positions)]
