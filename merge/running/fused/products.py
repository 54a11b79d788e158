"""What the factors of an adapter add to a tensor, in one go from its file: numbers as they are stored,
widened, and the product of the factors added, without a pass of its own for any of it.
"""

import ctypes
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.stored import At, Multiplying
from merge.running.fused.compiler import Built, Compiler
from merge.running.fused.reading import KINDS, READING

WIDE, TALL = 64, 6
"""Columns and rows of a product that are summed up together."""
PART = 192
"""BLAS sums up so many products at a time where there are many, or half of them."""

TEXT = (
    f"""{READING}
enum {{ WIDE = {WIDE}, TALL = {TALL} }};"""
    + """
enum { STRIP = 1 << 16, PIECE = 1 << 13 };
#ifdef __AVX512F__
enum { LANES = 16, ACROSS = 4 };
#else
enum { LANES = 8, ACROSS = 2 };
#endif
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
#define EACH(x, most) _Pragma("GCC unroll 8") for (int x = 0; x < most; x++)

/* TALL rows (of rank entries) times a panel (rank, WIDE): every entry is summed up in the order of the rank,
   so many products at a time, which are not rounded before they are added. */
__attribute__((optimize("fp-contract=fast")))
static void tile(const float *left, const float *panel, int64_t rank, int64_t part, float found[TALL][WIDE]) {
  for (int column = 0; column < WIDE; column += ACROSS * LANES)
    for (int64_t at = 0; at < rank; ) {
      const int64_t end = rank - at < part ? rank : at + part, first = at;
      lanes sums[TALL][ACROSS] = {0};
      for (; at < end; at++) {
        const lanes *const right = (const lanes *)(panel + at * WIDE + column);
        EACH(i, TALL) {
          const float one = left[i * rank + at];
          EACH(j, ACROSS) sums[i][j] += one * right[j];
        }
      }
      EACH(i, TALL) {
        lanes *const to = (lanes *)(found[i] + column);
        EACH(j, ACROSS) to[j] = first ? to[j] + sums[i][j] : sums[i][j];
      }
    }
}

/* Adds entries from one on of the product of left (rows and TALL more, rank) and panels of WIDE columns. */
static void add(const float *left, const float *panels, int64_t columns, int64_t rank, int64_t entry,
                int64_t part, int64_t count, float *out) {
  const int64_t last = (entry + count - 1) / columns;
  for (int64_t column = 0; column < columns; column += WIDE, panels += rank * WIDE)
    for (int64_t row = entry / columns; row <= last; row += TALL) {
      float found[TALL][WIDE];
      tile(left + row * rank, panels, rank, part, found);
      for (int64_t i = 0; i < TALL && row + i <= last; i++) {
        const int64_t begin = (row + i) * columns + column - entry;
        const int64_t width = columns - column < WIDE ? columns - column : WIDE;
        const int64_t low = begin < 0 ? 0 : begin, high = begin + width < count ? begin + width : count;
        for (int64_t at = low; at < high; at++) out[at] += found[i][at - begin];
      }
    }
}

/* Base plus the product of factors, from an entry on. 1 where a file ends. */
int run(const int32_t *fds, const int64_t *begins, const float *const *factors, float *out,
        const int64_t *shape, uint32_t kind, int64_t first, int64_t count, void *nothing, void *more) {
  static __thread unsigned char narrow[4 * PIECE];
  const int64_t columns = shape[0], rows = STRIP / columns / TALL > 0 ? STRIP / columns / TALL * TALL : TALL;
  const int wide = width(kind);
  for (int64_t at = 0; at < count; ) {
    const int64_t entry = first + at, left = ((entry / columns) + rows) * columns - entry;
    const int64_t n = left < count - at ? left : count - at;
    for (int64_t piece = 0; piece < n; piece += PIECE) {
      const int64_t size = n - piece < PIECE ? n - piece : PIECE;
      if (fetch(*fds, *begins + wide * (at + piece), narrow, wide * size)) return 1;
      widen(narrow, kind, size, out + at + piece);
    }
    add(factors[0], factors[1], columns, shape[1], entry, shape[2], n, out + at);
    at += n;
  }
  return 0;
}
"""
)


@dataclass(frozen=True)
class Laid:
    """Factors as the loop takes them: ``left`` (rows and ``TALL`` more, r), and the columns of the right one
    in ``panels`` (n, r, ``WIDE``). So many products are summed up at a time: a ``part`` of r.
    """

    left: Tensor
    panels: Tensor
    columns: int
    stored: str
    part: int

    @property
    def entries(self) -> int:
        """Of the product."""
        return (self.left.shape[0] - TALL) * self.columns


class Products:
    """Adds products of factors to stored tensors; a tensor is left to torch where that sums up otherwise."""

    def __init__(self, built: Built) -> None:
        self._run = built.run
        self._parts: dict[tuple[str, int, int, int], int] = {}

    def laid(self, left: Tensor, right: Tensor, tile: int, stored: str) -> Laid | None:
        """Factors (rows, r) and (r, columns) of a tensor of the dtype ``stored``, as ``added`` takes them;
        ``None`` where torch, multiplying ``tile`` rows at a time, gives other bits. Where it does for the
        last of them alone (a few rows it multiplies in another way), those are left out.
        """
        (rows, rank), columns = left.shape, right.shape[1]
        if stored not in KINDS or not left.numel() or not right.numel():
            return None
        part, rest = self._part(stored, min(tile, rows), rank, columns), rows % tile if rows > tile else 0
        if rest and self._part(stored, rest, rank, columns) != part:
            left = left[:-rest]
        return _laid(left, right, stored, part) if part else None

    def added(self, base: At, laid: Laid, first: int, out: Tensor) -> int:
        """Stored entries from ``first`` on plus those of the product; how many could be made so."""
        count = min(out.numel(), laid.entries - first)
        if count <= 0:
            return 0
        status = self._run(
            (ctypes.c_int32 * 1)(base.fd),
            (ctypes.c_int64 * 1)(base.begin),
            (ctypes.c_void_p * 2)(laid.left.data_ptr(), laid.panels.data_ptr()),
            out.data_ptr(),
            (ctypes.c_int64 * 3)(laid.columns, laid.left.shape[1], laid.part),
            KINDS[laid.stored],
            first,
            count,
            None,
            None,
        )
        return 0 if status else count

    def _part(self, *shape: Any) -> int:
        if shape not in self._parts:
            parts = (part for part in (shape[2], shape[2] // 2, PART) if self._agrees(part, *shape))
            self._parts[shape] = next(parts, 0)
        return self._parts[shape]

    def _agrees(self, part: int, stored: str, rows: int, rank: int, columns: int) -> bool:
        """Whether numbers such as models have come out as torch makes them."""
        if not part:
            return False
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(side, generator=generator) for side in ((rows, rank), (rank, columns)))
        left[::5] = 0.0
        base = (torch.randn(rows * columns, generator=generator) * 0.02).to(torch_dtype(stored))
        out, laid = torch.empty(base.numel()), _laid(left, right, stored, part)
        with tempfile.TemporaryFile() as file:
            file.write(base.view(torch.uint8).numpy().tobytes())
            file.flush()
            if self.added(At(file.fileno(), 0, stored), laid, 0, out) < out.numel():
                return False
        wanted = base.float().add_(torch.mm(left, right).view(-1))
        return torch.equal(out.view(torch.int32), wanted.view(torch.int32))


@lru_cache(maxsize=2)
def products(compiler: Compiler) -> Multiplying | None:
    """The loop, where it could be built."""
    built = compiler.build(TEXT)
    return None if built is None else Products(built)


def _laid(left: Tensor, right: Tensor, stored: str, part: int) -> Laid:
    rank, columns = right.shape
    panels = pad(right, (0, -columns % WIDE)).view(rank, -1, WIDE).transpose(0, 1).contiguous()
    return Laid(pad(left, (0, 0, 0, TALL)), panels, columns, stored, part)
