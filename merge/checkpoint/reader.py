"""Blocks of tensors from disk into buffers the caller reuses: positional reads, asked for ahead of use.

Any number of threads may read through one ``TensorReader``. Nothing large is allocated: a block goes from
the page cache to the caller's buffer, through a small piece buffer of the thread where its dtype must change
or its codes be decoded.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.adapter import LoraPair, Masked
from merge.checkpoint.codecs import decode
from merge.checkpoint.dtype import as_bytes, torch_dtype
from merge.checkpoint.header import DTYPE_BITS, TensorInfo
from merge.checkpoint.index import ModelIndex, safe_path
from merge.checkpoint.stored import StoredParts, Strip, add_masked
from merge.file_errors import FileMissing, FileSizeMismatch, FileUnreadable

PIECE_ELEMENTS = 1 << 18
TILE_ELEMENTS = 1 << 16
"""LoRA products are computed in fixed tiles of whole rows, so that no block size can change a bit of them."""
MAX_OPEN_FILES = 64
AHEAD_BYTES = 8 << 20
CACHED_PAIRS = 4
Wait = Callable[[str, int, int], None]
"""Given a file and a range of its bytes, returns when they are there."""


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
        self._files = _OpenFiles(folder, index.label, waits[0])
        self._adapter_files = (
            _OpenFiles(adapter_folder, index.adapter.label, waits[1])
            if adapter_folder is not None and index.adapter is not None
            else None
        )
        self._scratch = threading.local()
        self._factors: OrderedDict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] = OrderedDict()
        self._factors_lock = threading.Lock()

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
        pair = adapter.pairs.get(name) if adapter else None
        if adapter is not None and self._adapter_files is not None and name in adapter.replaced:
            self._read_cast(self._adapter_files, adapter.replaced[name], first, count, out)
        else:
            self._read_cast(self._files, self.index.tensors[name], first, count, out)
        if pair is not None:
            self._add_product(name, pair, first, count, out)
        if adapter is not None and name in adapter.masked:
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

    def borrow(self, name: str, first: int, count: int) -> tuple[int, int]:
        """An open file, until ``give_back``, and the byte in it at which these entries of a plain tensor
        begin; what follows them is asked for ahead of use.
        """
        info = self.index.tensors[name]
        width = DTYPE_BITS[info.dtype] // 8
        if first < 0 or first + count > info.numel:
            raise ValueError(f"{name} has {info.numel} entries, not {first + count}")
        begin = info.begin + first * width
        return self._files.borrow(info.file, begin, count * width), begin

    def give_back(self, name: str) -> None:
        """Ends a ``borrow`` of this tensor's file."""
        self._files.give_back(self.index.tensors[name].file)

    def factors(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the adapter adds to a tensor: (rows, r) with the scale in it, times (r, columns). Kept: copy
        before changing.
        """
        assert self.index.adapter is not None  # the caller has seen its pairs
        return self._factors_of(name, self.index.adapter.pairs[name], dtype)

    def will_need(self, name: str, first: int = 0, count: int | None = None) -> None:
        """Asks the operating system to fetch these entries soon; returns at once where it can."""
        info = self.index.tensors[name]
        if info.coded is not None:
            for part in info.stored:
                self._files.fetch_soon(part.file, part.begin, part.nbytes)
            return
        bits = DTYPE_BITS[info.dtype]
        begin = info.begin + first * bits // 8
        end = info.end if count is None else min(info.end, begin + count * bits // 8)
        self._files.fetch_soon(info.file, begin, end - begin)

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

    def _read_raw(self, files: "_OpenFiles", info: TensorInfo, first: int, count: int, out: Tensor) -> None:
        flat = out.view(-1)[:count]
        width = flat.element_size()
        if flat.dtype != torch_dtype(info.dtype, info.name) or flat.numel() < count:
            raise ValueError(f"a buffer of {count} {info.dtype} entries is needed for {info.name}")
        if first < 0 or first + count > info.numel:
            raise ValueError(f"{info.name} has {info.numel} entries, not {first + count}")
        if count:
            files.read(info.file, info.begin + first * width, as_bytes(flat))

    def _read_cast(self, files: "_OpenFiles", info: TensorInfo, first: int, count: int, out: Tensor) -> None:
        if info.coded is not None:
            flat = out.view(-1)[:count]
            decode(info, first, flat, StoredParts(files, self._buffer, self._strips()), self._decoded)
            return
        dtype = torch_dtype(info.dtype, info.name)
        if dtype == out.dtype:
            self._read_raw(files, info, first, count, out)
            return
        flat = out.view(-1)
        for done in range(0, count, PIECE_ELEMENTS):
            size = min(PIECE_ELEMENTS, count - done)
            piece = self._buffer("piece", PIECE_ELEMENTS, dtype)[:size]
            self._read_raw(files, info, first + done, size, piece)
            flat[done : done + size].copy_(piece)

    def _add_product(self, name: str, pair: LoraPair, first: int, count: int, out: Tensor) -> None:
        left, right = self._factors_of(name, pair, out.dtype)
        rows, columns = left.shape[0], right.shape[1]
        height = max(1, TILE_ELEMENTS // max(columns, 1))
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

    def _factors_of(self, name: str, pair: LoraPair, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The two factors of the stored tensor's change, (rows, r) with the scale in it, and (r, columns)."""
        with self._factors_lock:
            found = self._factors.get((name, dtype))
            if found is None:
                a, b = self._factor(pair.a, dtype), self._factor(pair.b, dtype)
                left, right = (a.T.contiguous(), b.T.contiguous()) if pair.transposed else (b, a)
                found = self._factors[name, dtype] = (left.mul_(pair.scale), right)
                while len(self._factors) > CACHED_PAIRS:
                    self._factors.popitem(last=False)
            self._factors.move_to_end((name, dtype))
            return found

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

    def _buffer(self, use: str, elements: int, dtype: torch.dtype) -> Tensor:
        buffers: dict[Any, Tensor] = self._scratch.__dict__
        found = buffers.get((use, dtype))
        if found is None or found.numel() < elements:
            found = buffers[use, dtype] = torch.empty(elements, dtype=dtype)
        return found[:elements]


@dataclass
class _OpenFile:
    fd: int
    users: int = 0
    hinted: int = 0


class _OpenFiles:
    """The open files of a folder: at most ``MAX_OPEN_FILES``, the least recently used closed first."""

    def __init__(self, folder: Path, label: str, wait: Wait | None = None) -> None:
        self._folder = folder
        self._label = label
        self._wait = wait
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()

    def read(self, name: str, offset: int, buffer: memoryview, *, ahead: bool = True) -> None:
        self._await(name, offset, offset + len(buffer))
        with self._use(name) as file:
            if ahead:
                self._hint(file, offset, len(buffer))
            self._fill(file.fd, name, offset, buffer)

    def _fill(self, fd: int, name: str, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise FileUnreadable(f"{name} of {self._label} cannot be read: {error.strerror}.") from error
            if got == 0:
                raise FileSizeMismatch(
                    f"{name} of {self._label} ends at byte {os.fstat(fd).st_size}: it was cut short while it "
                    "was read; fetch it anew and run again."
                )
            done += got

    def read_rows(self, name: str, begin: int, size: int, rows: Sequence[int], buffer: memoryview) -> None:
        """Rows of ``size`` bytes that are counted from byte ``begin``, one after another into the buffer."""
        if rows:
            self._await(name, begin + min(rows) * size, begin + (max(rows) + 1) * size)
        with self._use(name) as file:
            for first, last in runs_of(rows):
                part = buffer[first * size : last * size]
                self._fill(file.fd, name, begin + rows[first] * size, part)

    def borrow(self, name: str, offset: int, size: int) -> int:
        """The descriptor, until ``give_back``, of a file of which these bytes are about to be read."""
        self._await(name, offset, offset + size)
        file = self._take(name)
        self._hint(file, offset, size)
        return file.fd

    def give_back(self, name: str) -> None:
        """Lets a file be closed again."""
        with self._lock:
            self._open[name].users -= 1

    def read_pieces(self, name: str, starts: Iterable[int], size: int, buffer: memoryview) -> None:
        """Pieces of ``size`` bytes that begin at these bytes, one after another into the buffer."""
        with self._use(name) as file:
            for at, start in enumerate(starts):
                self._await(name, start, start + size)
                self._fill(file.fd, name, start, buffer[at * size : (at + 1) * size])

    def _await(self, name: str, begin: int, end: int) -> None:
        if self._wait is not None:
            self._wait(name, begin, end)

    def fetch_soon(self, name: str, offset: int, size: int) -> None:
        if self._wait is not None:
            return  # it may not be there yet
        with self._use(name) as file:
            _advise(file.fd, offset, size, "POSIX_FADV_WILLNEED")

    def close(self) -> None:
        with self._lock:
            for file in self._open.values():
                if file.users == 0:
                    os.close(file.fd)
            self._open = OrderedDict((name, file) for name, file in self._open.items() if file.users)

    def _hint(self, file: _OpenFile, offset: int, size: int) -> None:
        """Keeps the next ``AHEAD_BYTES`` on their way while a file is read forwards."""
        end = offset + size
        ahead = file.hinted - end
        if not AHEAD_BYTES // 2 <= ahead <= 4 * AHEAD_BYTES:
            begin = file.hinted if 0 <= ahead < AHEAD_BYTES // 2 else end
            file.hinted = begin + AHEAD_BYTES
            if not (_at_hand(file.fd, begin) and _at_hand(file.fd, begin + AHEAD_BYTES - 1)):
                _advise(file.fd, begin, AHEAD_BYTES, "POSIX_FADV_WILLNEED")

    @contextmanager
    def _use(self, name: str) -> Iterator[_OpenFile]:
        file = self._take(name)
        try:
            yield file
        finally:
            with self._lock:
                file.users -= 1

    def _take(self, name: str) -> _OpenFile:
        with self._lock:
            file = self._open.get(name)
            if file is None:
                file = self._open[name] = _OpenFile(self._open_fd(name))
                self._shrink()
            self._open.move_to_end(name)
            file.users += 1
            return file

    def _open_fd(self, name: str) -> int:
        try:
            fd = os.open(safe_path(self._folder, name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FileUnreadable(f"{name} of {self._label} cannot be opened: {error.strerror}.") from error
        _advise(fd, 0, 0, "POSIX_FADV_SEQUENTIAL")
        return fd

    def _shrink(self) -> None:
        for name in [name for name, file in self._open.items() if file.users == 0]:
            if len(self._open) <= MAX_OPEN_FILES:
                return
            os.close(self._open.pop(name).fd)


def runs_of(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Places (first, one past the last) of rows that follow each other."""
    first = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1:
            yield first, at
            first = at


def _at_hand(fd: int, offset: int) -> bool:
    """Whether a byte is in the page cache (or beyond the end): asking for what is there costs as much as
    reading it. Where that cannot be told, it is not.
    """
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except (OSError, AttributeError):
        return False
    return True


def _advise(fd: int, offset: int, size: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, size, getattr(os, advice))
