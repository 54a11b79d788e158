"""Ranks within rows as ``merge.kernels.row_ranks`` finds them, with less to sort and compiled loops for the
rest.

What is sorted are 32 bits an entry: the column below, and above it as much of the magnitude as there is
room for, counted down from the largest of the row. In what comes out, entries that so little tells apart are
put in order by all their bits, unless there are too many of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from merge.fused.compiler import Built
from merge.kernels.row_ranks import row_ranks

Room = Callable[[str, int, torch.dtype], Tensor]
"""A thread's own memory for some use."""
MOST_COLUMNS = 1 << 17
LANES = 16
_KEYS, _SHARED, _APART = 0, 1, 2

ORDERING = """
#include <stdint.h>
#include <string.h>

enum { BITS = 23 + 4, MOVES = 8, LANES = 16 };
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef int32_t vi_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
static const vi PLACES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static inline vi most(vi a, vi b) { const vi m = a > b; return (a & m) | (b & ~m); }
#define ALL(x) ((vi){0} + (x))
#define EARLIER(x, n) __builtin_shuffle(x, ALL(-1), (vi)(PLACES - (n) + (PLACES < (n)) * -(LANES + (n))))
#define LATER(x, n) __builtin_shuffle(x, ALL(-1), (vi)(PLACES + (n)))

/* For ascending numbers the mean place of all that are equal to each; one number may be read and some means
   written beyond either end. Places are counted from 1, and from the end, so that 0 and -1 lose. */
static void share(int32_t *numbers, float *means, int64_t count, int32_t *firsts) {
  numbers[-1] = ~numbers[0];
  numbers[count] = ~numbers[count - 1];
  vi carried = ALL(0);
  for (int64_t at = 0; at < count; at += LANES) {
    vi found = (*(vi_any *)(numbers + at) != *(vi_any *)(numbers + at - 1)) & (PLACES + (int32_t)(at + 1));
    found = most(found, EARLIER(found, 1));
    found = most(found, EARLIER(found, 2));
    found = most(found, EARLIER(found, 4));
    found = most(most(found, EARLIER(found, 8)), carried);
    carried = ALL(found[LANES - 1]);
    *(vi_any *)(firsts + at) = found - 1;
  }
  carried = ALL(0);
  for (int64_t at = (count - 1) / LANES * LANES; at >= 0; at -= LANES) {
    const vi left = (int32_t)(count - at) - PLACES, here = left > 0;
    vi found = (*(vi_any *)(numbers + at) != *(vi_any *)(numbers + at + 1)) & here & left;
    found = most(found, LATER(found, 1));
    found = most(found, LATER(found, 2));
    found = most(found, LATER(found, 4));
    found = most(most(found, LATER(found, 8)), carried);
    carried = ALL(found[0]);
    const vi ends = *(vi_any *)(firsts + at) + (int32_t)count - found;
    *(vf_any *)(means + at) = __builtin_convertvector(ends, vf) * 0.5f;
  }
}

/* Step 0 makes keys of the magnitudes of rows, as far as they lie in the largest octaves; the column is in
   their low bits. Steps 1 and 2 put ranks in the place of sorted keys: equal magnitudes share the mean of
   their places, or not. Room is for four rows and what is between them, after a word for each row that tells
   whether its keys tell all magnitudes apart. Gives the number of rows that are done. */
int run(const uint32_t *values, uint32_t *keys, void *none, void *nothing, int32_t *room, uint32_t step,
        int64_t rows, int64_t columns, void *no, void *more) {
  uint32_t low = 1;
  while (columns > (int64_t)1 << low) low++;
  const uint32_t span = (1u << BITS) - 1, shift = low + BITS > 32 ? low + BITS - 32 : 0;
  const uint32_t column = (1u << low) - 1, lost = (1u << shift) - 1;
  const int64_t wide = columns + 2 * LANES;
  int32_t *numbers = room + rows + LANES, *from = numbers + wide, *firsts = from + wide;
  float *means = (float *)(firsts + wide);
  for (int64_t row = 0; row < rows; row++, values += columns, keys += columns) {
    if (step == 0) {
      uint32_t largest = 0, bad = 0;
      for (int64_t at = 0; at < columns; at++) {
        const uint32_t bits = values[at] & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
      }
      const uint32_t least = largest > span ? largest - span : 0;
      for (int64_t at = 0; at < columns; at++) {
        const uint32_t bits = values[at] & 0x7fffffffu;
        keys[at] = ((bits > least ? bits - least : 0) >> shift) << low | (uint32_t)at;
        bad |= (bits & lost) | (bits != 0 && bits <= least + lost);
      }
      room[row] = !bad;
      continue;
    }
    if (room[row]) {
      for (int64_t at = 0; at < columns; at++) {
        numbers[at] = keys[at] >> low;
        from[at] = keys[at] & column;
      }
    } else {
      int64_t moves = MOVES * columns;
      for (int64_t at = 0, to; at < columns; at++) {
        const int32_t place = keys[at] & column, bits = values[place] & 0x7fffffffu;
        for (to = at; to > 0 && numbers[to - 1] > bits; to--) {
          numbers[to] = numbers[to - 1];
          from[to] = from[to - 1];
        }
        numbers[to] = bits;
        from[to] = place;
        moves -= at - to;
        if (moves < 0) return row;
      }
    }
    float *ranks = (float *)keys;
    if (step == 1) share(numbers, means, columns, firsts);
    else for (int64_t at = 0; at < columns; at++) means[at] = (float)at;
    for (int64_t at = 0; at < columns; at++) memcpy(ranks + from[at], means + at, sizeof *ranks);
  }
  return rows;
}
"""


def ranks_of(values: Tensor, shared: bool, built: Built | None, number: int, room: Room) -> Tensor:
    """``row_ranks`` of float32 rows, in memory that is kept for the ``number``-th ranks of a thread."""
    rows, columns = values.shape
    if built is None or columns > MOST_COLUMNS:
        return row_ranks(values, shared=shared)
    ranks = room(f"ranks {number}", values.numel(), torch.float32)
    aside = room("ordering", rows + 4 * (columns + 2 * LANES) + 2 * LANES, torch.int32)
    where = (values.data_ptr(), ranks.data_ptr(), None, None, aside.data_ptr())
    built.run(*where, _KEYS, rows, columns, None, None)
    ranks.view(rows, columns).numpy().view("uint32").sort(axis=1)
    done = built.run(*where, _SHARED if shared else _APART, rows, columns, None, None)
    if done < rows:
        ranks.view(rows, columns)[done:] = row_ranks(values[done:], shared=shared)
    return ranks
