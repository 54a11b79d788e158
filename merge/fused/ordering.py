"""Ranks within rows as ``merge.kernels.row_ranks`` finds them, with its steps before and after the sort as
compiled loops.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from merge.fused.compiler import Built
from merge.kernels.row_ranks import row_ranks

Room = Callable[[str, int, torch.dtype], Tensor]
"""A thread's own memory for some use."""
_KEYS, _SHARED, _APART = 0, 1, 2

ORDERING = """
#include <stdint.h>

/* Step 0 makes keys of values: magnitude above, column below. Steps 1 and 2 make ranks of sorted keys: equal
   magnitudes share the mean of their places, or not. */
int run(const uint32_t *values, int64_t *keys, float *ranks, void *none, void *nothing, uint32_t step,
        int64_t rows, int64_t columns, void *no, void *more) {
  for (int64_t row = 0; row < rows; row++, values += columns, keys += columns, ranks += columns) {
    if (step == 0) {
      for (int64_t at = 0; at < columns; at++) keys[at] = (int64_t)(values[at] & 0x7fffffffu) << 32 | at;
      continue;
    }
    for (int64_t first = 0, end; first < columns; first = end) {
      const int64_t magnitude = keys[first] >> 32;
      for (end = first + 1; step == 1 && end < columns && keys[end] >> 32 == magnitude; end++) ;
      const float rank = (float)(first + end - 1) * 0.5f;
      for (int64_t at = first; at < end; at++) ranks[(uint32_t)keys[at]] = rank;
    }
  }
  return 0;
}
"""


def ranks_of(values: Tensor, shared: bool, built: Built | None, number: int, room: Room) -> Tensor:
    """``row_ranks`` of float32 rows, in memory that is kept for the ``number``-th ranks of a thread."""
    if built is None:
        return row_ranks(values, shared=shared)
    rows, columns = values.shape
    keys = room("keys", values.numel(), torch.int64)
    ranks = room(f"ranks {number}", values.numel(), torch.float32)
    where = (values.data_ptr(), keys.data_ptr(), ranks.data_ptr(), None, None)
    built.run(*where, _KEYS, rows, columns, None, None)
    keys.view(rows, columns).numpy().sort(axis=1)
    built.run(*where, _SHARED if shared else _APART, rows, columns, None, None)
    return ranks
