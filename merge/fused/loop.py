"""A built function with the numbers of one tensor's pass, ready to run over spans of it."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from merge.blocks import Place
from merge.fused.compiler import Built
from merge.fused.source import PAD, WIDTHS, Sink, block_of


@dataclass(frozen=True)
class Loop:
    """A built function with the numbers of one tensor's pass. ``tables`` have a number for each column, or
    each row of so many entries.
    """

    built: Built
    sinks: tuple[Sink, ...]
    dtypes: tuple[str, ...]
    numbers: Any
    words: Any
    step: int
    tables: tuple[tuple[Tensor, int], ...] = ()

    def run(
        self,
        places: Sequence[Place],
        first: int,
        count: int,
        into: Sequence[int],
        scratch: Tensor,
        spread: tuple[int, int] | None = None,
    ) -> bool:
        """Runs over ``count`` entries, into sinks at these addresses; whether all went well. They follow each
        other, unless ``spread`` says how many lie together, and how far each lot begins after the one before.
        """
        repeats = [(each, -entries or each.numel()) for each, entries in self.tables]
        places = [*places, *(Place(-1, repeat, each.data_ptr(), each) for each, repeat in repeats)]
        many = len(places)
        step, stride = spread or (self.step, self.step)
        status = self.built.run(
            (ctypes.c_int32 * many)(*(place.fd for place in places)),
            (ctypes.c_int64 * many)(*(place.offset for place in places)),
            (ctypes.c_void_p * many)(*(place.address for place in places)),
            self.numbers,
            self.words,
            first,
            count,
            stride << 32 | step,
            (ctypes.c_void_p * len(into))(*into),
            scratch.data_ptr(),
        )
        return int(status) == 0

    @property
    def key(self) -> Any:
        """What stands for the code that is run."""
        return self.built

    @cached_property
    def scratch_bytes(self) -> int:
        """Memory for one block of every input."""
        each = sum(WIDTHS[name] for name in self.dtypes) + WIDTHS["F32"] * len(self.tables)
        return (block_of(self.sinks) + PAD) * each
