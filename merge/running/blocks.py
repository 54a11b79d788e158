"""The memory that threads keep for their blocks, and the way a block comes in and goes out."""

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.adapter import AdapterIndex
from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.files import Stretch
from merge.checkpoint.reader import TensorReader
from merge.errors import NotFinite, TensorsDiffer
from merge.planning.outputs import INTEGERS, Input, OutputTensor
from merge.planning.sizing import MOST_BLOCK_ELEMENTS
from merge.running.places import Lying
from merge.tokenizer.rows import TableReader

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_KEEP_BYTES, _LARGE_BYTES = 1 << 30, 8 << 20
_LINE = 64
_kept = [_KEEP_BYTES]
"""From how many bytes on memory is given back at once, of the runs that are under way, one in another."""


@contextmanager
def kept_memory(block: int = 0) -> Iterator[None]:
    """Asks glibc to keep freed memory for the time of a run with blocks of so many entries, and to give it
    back at its end: otherwise the pages of every temporary of every block would be faulted in anew. Large
    temporaries, of rows or tensors beyond the usual blocks, are given back at once: kept in pieces into which
    the next one does not fit, they took up to twice what is held. A run within another has its own way, and
    leaves the other's. Elsewhere nothing happens.
    """
    mallopt, trim = _glibc()
    mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)
    _kept.append(_KEEP_BYTES if block <= MOST_BLOCK_ELEMENTS else _LARGE_BYTES)
    mallopt(_MMAP_THRESHOLD, _kept[-1])
    try:
        yield
    finally:
        _kept.pop()
        mallopt(_MMAP_THRESHOLD, _kept[-1])
        trim(0)


def _glibc() -> tuple[Callable[[int, int], Any], Callable[[int], Any]]:
    """Its ``mallopt`` and ``malloc_trim``; where it is missing, what does nothing."""
    try:
        library: Any = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        return library.mallopt, library.malloc_trim
    except (AttributeError, OSError):
        return (lambda *_: None), (lambda *_: None)


@contextmanager
def settled_objects() -> Iterator[None]:
    """Spares the garbage collector what is there already (torch alone brings half a million objects) for the
    time of a run.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """For the time of a run torch has one thread: blocks are the parallelism, not operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Buffers:
    """Memory of each thread, by use; grown when needed and never given back before the end."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def get(self, use: object, elements: int, dtype: torch.dtype) -> Tensor:
        """A flat CPU tensor with undefined content, the same memory for the same use on the same thread."""
        held: dict[tuple[object, torch.dtype], Tensor] = self._mine.__dict__  # type: ignore[assignment]
        found = held.get((use, dtype))
        if found is None or found.numel() < elements:
            found = held[use, dtype] = torch.empty(elements, dtype=dtype)
        return found[:elements]


class Rooms:
    """Memory that is handed from thread to thread: taken by one, given back by another."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """At least so many bytes of undefined content, the last ones that were given back if they suffice."""
        try:
            found = self._free.pop()
        except IndexError:
            found = torch.empty(0, dtype=torch.uint8)
        return found if found.numel() >= size else torch.empty(-(-size // _LINE) * _LINE, dtype=torch.uint8)

    def give(self, room: Tensor) -> None:
        """Gives it back."""
        self._free.append(room)


class Inputs:
    """Blocks of the models' tensors in compute dtype, checked to be finite."""

    def __init__(
        self,
        readers: Mapping[str, TensorReader],
        buffers: Buffers,
        dtype: torch.dtype,
        tables: TableReader | None = None,
    ) -> None:
        self.readers = readers
        self.dtype = dtype
        self._buffers = buffers
        self._tables = tables
        self.made: Mapping[str, Tensor] = {}
        """Tensors that no input holds, by the name of the output."""

    def load(self, inputs: Sequence[Input], first: int, count: int) -> list[Tensor]:
        """The same entries of each input, flat; raises ``NotFinite`` naming tensor and model."""
        found = [self.held(source, number, first, count) for number, source in enumerate(inputs)]
        for source, entries in zip(inputs, found, strict=True):
            self._check(source, entries)
        return found

    def held(self, source: Input, number: int, first: int, count: int) -> Tensor:
        """These entries of one input, flat, in this thread's memory for the ``number``-th, not checked."""
        buffer = self._buffers.get(("input", number), count, self.dtype)
        reader = self.readers[source.model]
        if source.rows is None:
            reader.read_float(source.tensor, first, count, buffer)
        else:
            assert self._tables is not None  # a plan with tables is run with their reader
            self._tables.read(source.rows, source.tensor, first, count, buffer)
        return buffer

    def _check(self, source: Input, entries: Tensor) -> None:
        if not isfinite(float(entries.sum())) and not bool(torch.isfinite(entries).all()):
            label = self.readers[source.model].index.label
            raise NotFinite(
                f"{source.tensor} of {label} holds NaN or infinity; the file is damaged or badly trained."
            )

    @property
    def adapters(self) -> list[AdapterIndex]:
        """Those of the models that have one."""
        found = (reader.index.adapter for reader in self.readers.values())
        return [adapter for adapter in found if adapter is not None]

    def lying(self, inputs: Sequence[Input]) -> Lying:
        """How the entries of these are come by without being checked."""
        return Lying(self, inputs)

    def stretch(self, source: Input) -> Stretch | None:
        """Where the entries of an input lie that can be taken from its file as they are, else ``None``."""
        return None if source.rows is not None else self.readers[source.model].stretch(source.tensor)

    def equal(self, output: OutputTensor, first: int, count: int) -> Tensor:
        """These entries of the first model, after checking that every model has the same; raises
        ``TensorsDiffer``.
        """
        made = self.made.get(output.name)
        if made is not None:
            return made.view(-1)[first : first + count]
        if output.dtype in INTEGERS:
            blocks = [self._raw(each, place, first, count) for place, each in enumerate(output.inputs)]
        else:
            blocks = self.load(output.inputs, first, count)
        for other, block in zip(output.inputs[1:], blocks[1:], strict=True):
            if not torch.equal(blocks[0], block):
                ours, theirs = (self.readers[each.model].index.label for each in (output.inputs[0], other))
                raise TensorsDiffer(
                    f"{output.name} must be the same in all models, but differs between {ours} and {theirs}; "
                    "an override with policy base or source:<id> would choose one."
                )
        return blocks[0]

    def _raw(self, source: Input, place: int, first: int, count: int) -> Tensor:
        reader = self.readers[source.model]
        info = reader.index.tensors[source.tensor]
        buffer = self._buffers.get(("raw", place), count, torch_dtype(info.dtype, info.name))
        reader.read_into(info, first, count, buffer)
        return buffer


def cast_out(name: str, merged: Tensor, dtype: torch.dtype, buffers: Buffers) -> Tensor:
    """The merged entries rounded once to ``dtype``, flat on the CPU; else ``NotFinite`` naming the tensor."""
    flat = merged.reshape(-1)
    if flat.is_floating_point() and flat.numel():
        low, high = (float(value) for value in torch.aminmax(flat))
        limit = torch.finfo(dtype).max
        if not (-limit <= low and high <= limit):
            raise NotFinite(
                f"{name}: the merge gives NaN, infinity or a number beyond {limit:.3g} ({dtype}); "
                "check the weights and scales, or choose a wider output dtype."
            )
    out = buffers.get("output", flat.numel(), dtype)
    return out.copy_(_narrowed(flat) if flat.dtype == torch.float64 and dtype.itemsize == 2 else flat)


def _narrowed(flat: Tensor) -> Tensor:
    """Numbers in float32 that round to 16 bits as these in float64 do, which torch rounds twice: cut off, and
    odd at the end where something was cut off.
    """
    near = flat.float()
    wrong = near.double() - flat
    beyond = torch.where(near < 0, wrong < 0, wrong > 0)
    return ((near.view(torch.int32) - beyond.int()) | (wrong != 0).int()).view(torch.float32)
