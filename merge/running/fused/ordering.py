"""The C text that takes rows through two loops with their ranks between them, block by block: one makes what
is ranked, and the other reads the ranks like one more input. What is read from files is read once.
"""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from merge.running.fused.prelude import FETCH
from merge.running.fused.ranking import RANKING

Room = Callable[[str, int, torch.dtype], Tensor]
"""A thread's own memory for some use."""
DESK_BYTES = 1 << 15
"""More than what does not depend on the columns of a row."""
COLUMN_BYTES = 40
"""More than what ranking needs for each column."""

ORDERING = (
    RANKING
    + """
#include <errno.h>
#include <unistd.h>
"""
    + FETCH
    + """
typedef int loop(const int64_t *fds, const int64_t *offsets, void *const *memory, const double *numbers,
                 const uint32_t *words, uint32_t first, int64_t count, int64_t steps, void *const *sinks,
                 unsigned char *scratch);

/* Both loops with what is theirs; how many inputs there are, and of which widths; how many of them are
   ranked, of how many columns, and with shared ranks or not; and how many bytes a sink takes for each so many
   entries. */
enum { PAD = 64 };
struct task {
  loop *loops[2];
  const double *numbers[2];
  const uint32_t *words[2];
  int64_t steps[2], inputs, ranked, columns, sinks;
  const int64_t *widths, *shared, *bytes, *entries;
};

static unsigned char *aligned(void *at) { return (unsigned char *)(((uintptr_t)at + 63) & ~(uintptr_t)63); }

/* Takes whole rows, about so many entries at a time, from files or memory into sinks, and what the first one
   stores to the file that comes after them. Room is for a block of each input and of all ranks, PAD entries
   more of each, and for ranking. */
int run(const int64_t *fds, const int64_t *offsets, void *const *memory, const struct task *task,
        unsigned char *room, uint32_t first, int64_t count, int64_t size, void *const *sinks,
        unsigned char *scratch) {
  const int64_t every = task->inputs + task->ranked, inputs = task->inputs;
  int64_t lie[every], start[every];
  void *read[every], *from[every], *ranked[task->ranked + 2], *into[task->sinks + 2];
  const int64_t *const target = (void *)(sinks + task->sinks);
  unsigned char *free_ = aligned(room);
  for (int64_t k = 0; k < every; k++) {
    start[k] = 0;
    lie[k] = k < inputs && fds[k] < 0 ? fds[k] : AS_IT_IS;
    from[k] = read[k] = free_;
    free_ += (size + PAD) * (k < inputs ? task->widths[k] : 4);
  }
  for (int64_t k = 0; k < task->ranked; k++) ranked[k] = from[inputs + k];
  ranked[task->ranked] = into[task->sinks] = (void *)-1;
  struct desk *const desk = (struct desk *)aligned(free_);
  furnish(desk, task->columns);
  for (int64_t done = 0; done < count; done += size) {
    const int64_t n = count - done < size ? count - done : size;
    for (int64_t k = 0; k < inputs; k++) {
      const int64_t at = done * task->widths[k];
      from[k] = fds[k] < 0 ? (unsigned char *)memory[k] + at : read[k];
      const int status = fds[k] < 0 ? FINE : fetch(fds[k], offsets[k] + at, read[k], n * task->widths[k]);
      if (status) return status;
      if (fds[k] >= 0) memset((unsigned char *)read[k] + n * task->widths[k], 0, PAD * task->widths[k]);
    }
    for (int turn = 0; turn < 2; turn++) {
      for (int64_t k = 0; turn && k < task->ranked; k++)
        for (int64_t at = 0; at < n; at += task->columns)
          rank((uint32_t *)ranked[k] + at, task->columns, task->shared[k], desk);
      for (int64_t k = 0; turn && k < task->ranked; k++) memset((float *)ranked[k] + n, 0, PAD * 4);
      for (int64_t k = 0; turn && k < task->sinks; k++)
        into[k] = (unsigned char *)sinks[k] + done / task->entries[k] * task->bytes[k];
      if (turn && target[0] >= 0) {
        into[task->sinks] = (void *)target[0];
        into[task->sinks + 1] = (void *)(target[1] + done * task->bytes[0]);
      }
      const int status = task->loops[turn](lie, start, from, task->numbers[turn], task->words[turn],
                                           first + (uint32_t)done, n, task->steps[turn],
                                           turn ? into : ranked, scratch);
      if (status) return status;
    }
  }
  return FINE;
}
"""
)


class Task(ctypes.Structure):
    """``struct task`` of the text."""

    _fields_ = (
        ("loops", ctypes.c_void_p * 2),
        ("numbers", ctypes.c_void_p * 2),
        ("words", ctypes.c_void_p * 2),
        ("steps", ctypes.c_int64 * 2),
        ("inputs", ctypes.c_int64),
        ("ranked", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("sinks", ctypes.c_int64),
        ("widths", ctypes.POINTER(ctypes.c_int64)),
        ("shared", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.POINTER(ctypes.c_int64)),
        ("entries", ctypes.POINTER(ctypes.c_int64)),
    )


def whole(numbers: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    """These numbers for a task."""
    return (ctypes.c_int64 * len(numbers))(*numbers)
