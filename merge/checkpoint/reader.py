"""Blocks of tensors from disk into buffers the caller reuses: positional reads, asked for ahead of use.

Any number of threads may read through one ``TensorReader``. Nothing large is allocated: a block goes from
the page cache to the caller's buffer, through a small piece buffer of the thread where its dtype must change
or its codes be decoded.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.adapter import LoraPair, Masked
from merge.checkpoint.beside import CACHED_PAIRS
from merge.checkpoint.codecs import decode
from merge.checkpoint.dtype import as_bytes, torch_dtype
from merge.checkpoint.files import OpenFiles, Stretch, Wait, runs_of
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.stored import At, Changing, Multiplying, Pair, StoredParts, Strip, add_masked
from merge.file_errors import FileMissing

PIECE_ELEMENTS = 1 << 18
TILE_ELEMENTS = 1 << 16
"""LoRA products are computed in fixed tiles of whole rows, so that no block size can change a bit of them."""


class TensorReader:
    """Reads one model's tensors, with its adapter applied on the fly where it has one.

    ``folder`` holds the model, ``adapter_folder`` the adapter that ``index.adapter`` was fitted from. Where
    files are still being filled, ``waits`` (for the one and for the other) return when bytes are there.
    """

    def __init__(
        self,
        folder: Path,
        index: ModelIndex,
        adapter_folder: Path | None = None,
        waits: tuple[Wait | None, Wait | None] = (None, None),
    ) -> None:
        if index.adapter is not None and adapter_folder is None:
            raise FileMissing(
                f"{index.label}: the folder of the adapter {index.adapter.label} was not given."
            )
        self.index = index
        self._files = OpenFiles(folder, index.label, waits[0])
        self._adapter_files = (
            OpenFiles(adapter_folder, index.adapter.label, waits[1])
            if adapter_folder is not None and index.adapter is not None
            else None
        )
        self._scratch = threading.local()
        self._factors: OrderedDict[tuple[str, torch.dtype], Pair] = OrderedDict()
        self._factors_lock = threading.Lock()
        self.changing: Changing | None = None
        self.multiplying: Multiplying | None = None
        """Add masked changes and products in one go, where that is known."""

    def take(self, changing: Changing | None, multiplying: Multiplying | None) -> None:
        """Has changes made by these, where they are given."""
        self.changing = changing or self.changing
        self.multiplying = multiplying or self.multiplying

    def changed(self, name: str) -> bool:
        """Whether the adapter changes this tensor, so that only ``read_float`` gives its true values."""
        adapter = self.index.adapter
        return adapter is not None and (
            name in adapter.pairs or name in adapter.replaced or name in adapter.masked
        )

    def read_into(self, info: TensorInfo, first: int, count: int, out: Tensor) -> None:
        """Raw entries ``first`` to ``first + count`` (flat, row-major) of a stored tensor into ``out``.

        ``out`` is contiguous, on the CPU, of the tensor's own dtype, with at least ``count`` entries. No
        adapter. Raises ``FileUnreadable`` or ``FileSizeMismatch``.
        """
        self._read_raw(self._files, info, first, count, out)

    def read_float(self, name: str, first: int, count: int, out: Tensor) -> None:
        """Entries ``first`` to ``first + count`` as the float dtype of ``out``, adapter applied."""
        adapter = self.index.adapter
        if adapter is None:
            self._read_cast(self._files, self.index.tensors[name], first, count, out)
            return
        done = self._changed_at_once(name, first, count, out)
        if done == count:
            return
        first, count, out = first + done, count - done, out.view(-1)[done:]
        if self._adapter_files is not None and name in adapter.replaced:
            self._read_cast(self._adapter_files, adapter.replaced[name], first, count, out)
        else:
            self._read_cast(self._files, self.index.tensors[name], first, count, out)
        if name in adapter.pairs:
            self._add_product(name, adapter.pairs[name], first, count, out)
        if name in adapter.masked:
            self._add_masked(adapter.masked[name], first, count, out)

    def read_rows(self, name: str, rows: Sequence[int], out: Tensor) -> None:
        """Whole rows of a tensor, wherever in it they lie, one after another as the float dtype of ``out``.

        ``out`` is flat and just as long; nothing is asked for ahead.
        """
        stored, plain = self.index.tensors[name], self.plain(name)
        width = stored.numel // max(stored.shape[0], 1)
        if plain is None:
            for first, last in runs_of(rows):
                count = (last - first) * width
                self.read_float(name, rows[first] * width, count, out[first * width : first * width + count])
            return
        dtype = torch_dtype(plain.dtype, name)
        raw = out if dtype == out.dtype else self._buffer("rows", out.numel(), dtype)
        self._files.read_rows(plain.file, plain.begin, width * dtype.itemsize, rows, as_bytes(raw))
        if raw is not out:
            out.copy_(raw)

    def plain(self, name: str) -> TensorInfo | None:
        """The tensor where what is stored are its values: not coded, not changed by the adapter."""
        info = self.index.tensors[name]
        return None if info.coded is not None or self.changed(name) else info

    def stretch(self, name: str) -> Stretch | None:
        """Where the values of a plain tensor lie; ``None`` of any other."""
        info = self.plain(name)
        return None if info is None else Stretch.of(self._files, info)

    def factors(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the adapter adds to a tensor: (rows, r) with the scale in it, times (r, columns). Kept: copy
        before changing.
        """
        assert self.index.adapter is not None  # the caller has seen its pairs
        found = self._factors_of(name, self.index.adapter.pairs[name], dtype)
        return found.left, found.right

    def close(self) -> None:
        """Closes all files; reading afterwards opens them again."""
        self._files.close()
        if self._adapter_files is not None:
            self._adapter_files.close()

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_raw(self, files: OpenFiles, info: TensorInfo, first: int, count: int, out: Tensor) -> None:
        flat = out.view(-1)[:count]
        width = flat.element_size()
        if flat.dtype != torch_dtype(info.dtype, info.name) or flat.numel() < count:
            raise ValueError(f"a buffer of {count} {info.dtype} entries is needed for {info.name}")
        if first < 0 or first + count > info.numel:
            raise ValueError(f"{info.name} has {info.numel} entries, not {first + count}")
        if count:
            files.read(info.file, info.begin + first * width, as_bytes(flat))

    def _read_cast(self, files: OpenFiles, info: TensorInfo, first: int, count: int, out: Tensor) -> None:
        if info.coded is not None:
            flat = out.view(-1)[:count]
            decode(info, first, flat, StoredParts(files, self._buffer, self._strips()), self._decoded)
            return
        dtype = torch_dtype(info.dtype, info.name)
        if dtype == out.dtype:
            self._read_raw(files, info, first, count, out)
            return
        if first < 0 or first + count > info.numel:
            raise ValueError(f"{info.name} has {info.numel} entries, not {first + count}")
        flat = out if out.dim() == 1 else out.view(-1)
        piece, memory = self._piece(dtype)
        begin, width = info.begin + first * dtype.itemsize, dtype.itemsize
        for done in range(0, count, PIECE_ELEMENTS):
            size = min(PIECE_ELEMENTS, count - done)
            files.read(info.file, begin + done * width, memory[: size * width])
            flat[done : done + size].copy_(piece[:size])

    def _changed_at_once(self, name: str, first: int, count: int, out: Tensor) -> int:
        """How many entries of a tensor that a mask or a product changes, and nothing else, could be made in
        one go.
        """
        adapter, info = self.index.adapter, self.index.tensors[name]
        if adapter is None or out.dtype != torch.float32 or info.coded is not None:
            return 0
        if name in adapter.replaced or first < 0 or first + count > info.numel:
            return 0
        masked, pair, flat = adapter.masked.get(name), adapter.pairs.get(name), out.view(-1)[:count]
        if masked is not None and pair is None and self.changing is not None:
            return self._masked_at_once(self.changing, info, masked, first, flat)
        if pair is not None and masked is None and self.multiplying is not None:
            laid = self._factors_of(name, pair, out.dtype).laid
            if laid is not None:
                with _part(self._files, info, first, count) as base:
                    return self.multiplying.added(base, laid, first, flat)
        return 0

    def _masked_at_once(
        self, changing: Changing, info: TensorInfo, masked: Masked, first: int, flat: Tensor
    ) -> int:
        assert self._adapter_files is not None  # checked in __init__
        files, count, codes = self._adapter_files, flat.numel(), first // 8
        with (
            _part(self._files, info, first, count) as base,
            _part(files, masked.vector, first, count) as vector,
            _part(files, masked.mask, codes, -(-(first + count) // 8) - codes) as mask,
        ):
            return count if changing.masked(base, vector, mask, first % 8, masked.scale, flat) else 0

    def _add_product(self, name: str, pair: LoraPair, first: int, count: int, out: Tensor) -> None:
        factors = self._factors_of(name, pair, out.dtype)
        left, right = factors.left, factors.right
        rows, columns = left.shape[0], right.shape[1]
        height = _tile_rows(columns)
        tile = self._buffer("tile", height * columns, out.dtype).view(height, columns)
        flat = out.view(-1)
        row = first // columns // height * height if count else rows
        while row < rows and row * columns < first + count:
            last = min(row + height, rows)
            product = torch.mm(left[row:last], right, out=tile[: last - row]).view(-1)
            begin, end = max(first, row * columns), min(first + count, last * columns)
            flat[begin - first : end - first].add_(product[begin - row * columns : end - row * columns])
            row = last

    def _add_masked(self, masked: Masked, first: int, count: int, out: Tensor) -> None:
        assert self._adapter_files is not None  # checked in __init__
        add_masked(masked, first, out.view(-1)[:count], StoredParts(self._adapter_files, self._buffer))

    def _factors_of(self, name: str, pair: LoraPair, dtype: torch.dtype) -> Pair:
        """The two factors of the stored tensor's change. Threads that want the same ones at once each make
        them, so that nobody waits who wants others.
        """
        with self._factors_lock:
            found = self._factors.get((name, dtype))
        if found is None:
            found = self._made_factors(self.index.tensors[name], pair, dtype)
        with self._factors_lock:
            self._factors[name, dtype] = found
            self._factors.move_to_end((name, dtype))
            while len(self._factors) > CACHED_PAIRS:
                self._factors.popitem(last=False)
        return found

    def _made_factors(self, info: TensorInfo, pair: LoraPair, dtype: torch.dtype) -> Pair:
        sides = [(self._factor(each.a, dtype), self._factor(each.b, dtype)) for each in (pair, *pair.below)]
        for each, (a, b) in zip((pair, *pair.below), sides, strict=True):
            (a if pair.transposed else b).mul_(each.scale)
        a, b = sides[0]
        if pair.below:
            a = torch.cat([a for a, _ in sides])
            b = torch.block_diag(*(b for _, b in sides))  # type: ignore[no-untyped-call]
        left, right = (a.T.contiguous(), b.T.contiguous()) if pair.transposed else (b, a)
        if self.multiplying is None or dtype != torch.float32 or info.coded is not None:
            return Pair(left, right)
        laid = self.multiplying.laid(left, right, _tile_rows(right.shape[1]), info.dtype)
        return Pair(left, right, laid)

    def _factor(self, info: TensorInfo, dtype: torch.dtype) -> Tensor:
        assert self._adapter_files is not None  # checked in __init__
        factor = torch.empty(info.shape, dtype=dtype)
        self._read_cast(self._adapter_files, info, 0, info.numel, factor)
        return factor

    def _strips(self) -> dict[str, Strip]:
        found: dict[str, Strip] = self._scratch.__dict__.setdefault("strips", {})
        return found

    def _decoded(self, elements: int) -> Tensor:
        return self._buffer("decoded", elements, torch.float32)

    def _piece(self, dtype: torch.dtype) -> tuple[Tensor, memoryview]:
        """A piece of this thread's memory, and the same as bytes."""
        pieces: dict[Any, tuple[Tensor, memoryview]] = self._scratch.__dict__
        found = pieces.get(dtype)
        if found is None:
            piece = torch.empty(PIECE_ELEMENTS, dtype=dtype)
            found = pieces[dtype] = (piece, as_bytes(piece))
        return found

    def _buffer(self, use: str, elements: int, dtype: torch.dtype) -> Tensor:
        buffers: dict[Any, Tensor] = self._scratch.__dict__
        found = buffers.get((use, dtype))
        if found is None or found.numel() < elements:
            found = buffers[use, dtype] = torch.empty(elements, dtype=dtype)
        return found[:elements]


def _tile_rows(columns: int) -> int:
    return max(1, TILE_ELEMENTS // max(columns, 1))


@contextmanager
def _part(files: OpenFiles, info: TensorInfo, first: int, count: int) -> Iterator[At]:
    """Where these entries of a stored tensor lie, as long as the context lasts."""
    stretch = Stretch.of(files, info)
    fd, begin = stretch.borrow(first, count)
    try:
        yield At(fd, begin, info.dtype)
    finally:
        stretch.give_back()
