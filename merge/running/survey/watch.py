"""Looks at a tensor that is merged for something other than a checkpoint, while its entries are there."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Look = Callable[[int, Tensor], None]
"""Measures a piece, by its first entry and its merged entries, flat."""


class Watch:
    """Is shown the merged blocks of one tensor, in their order and wherever they begin, and looks at each
    wanted piece once: what is shown again is known already.
    """

    def __init__(
        self, pieces: Sequence[tuple[int, int]], look: Look, told: Callable[[], dict[str, list[float]]]
    ) -> None:
        self.pieces = tuple(pieces)
        """First entry and size of each, in their order."""
        self._left = dict(self.pieces)
        self._parts: dict[int, Tensor] = {}
        self._look, self.told = look, told

    def saw(self, first: int, merged: Tensor) -> None:
        """Entries from ``first`` on, in memory that reading inputs does not overwrite."""
        flat = merged.reshape(-1)
        last = first + flat.numel()
        for start, count in list(self._left.items()):
            if start >= last:
                return
            begin, end = max(first, start), min(last, start + count)
            if begin >= end:
                continue
            part = flat[begin - first : end - first]
            if end - begin < count:
                held = self._parts.setdefault(start, torch.empty(count, dtype=flat.dtype))
                held[begin - start : end - start] = part
                part = held
            if end == start + count:
                self._look(start, part)
                self._parts.pop(start, None)
                del self._left[start]
