"""What a bundle adds to a tensor, in one go from the files: numbers as they are stored, widened, chosen by
the bits of a mask and added, where torch does that in passes of their own.
"""

import ctypes
import tempfile

import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.stored import At, Changing
from merge.fused.compiler import Built, Compiler

KINDS = {"BF16": 0, "F16": 1, "F32": 2}
_TRIED, _SHIFT = 20_003, 3
"""Entries on which the loop is held against torch, and the bit at which their mask begins."""

TEXT = """
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { STEP = 1 << 14, BF16 = 0, F16 = 1 };

static int fetch(int fd, int64_t at, void *to, int64_t size) {
  for (unsigned char *next = to; size > 0; ) {
    const ssize_t got = pread(fd, next, size, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 1;
    next += got; at += got; size -= got;
  }
  return 0;
}

/* So many stored numbers of a kind, from an entry on, as floats. */
static int widened(int fd, int64_t begin, int kind, int64_t entry, int64_t n, float *to) {
  uint16_t narrow[STEP];
  if (kind > F16) return fetch(fd, begin + 4 * entry, to, 4 * n);
  if (fetch(fd, begin + 2 * entry, narrow, 2 * n)) return 1;
  if (kind == BF16) for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = (uint32_t)narrow[i] << 16;
    memcpy(to + i, &bits, 4);
  } else for (int64_t i = 0; i < n; i++) {
    _Float16 half;
    memcpy(&half, narrow + i, 2);
    to[i] = half;
  }
  return 0;
}

static float ones[256][8];
__attribute__((constructor)) static void fill(void) {
  for (int byte = 0; byte < 256; byte++) for (int k = 0; k < 8; k++) ones[byte][k] = (byte >> k) & 1;
}

/* Base plus scale times a vector where a mask has ones, whose first byte holds the first entry at this bit. 1
   where a file ends or the result is not finite. */
int run(const int32_t *fds, const int64_t *begins, const double *scale, float *out, void *none,
        uint32_t bit, int64_t count, int64_t kinds, void *nothing, void *more) {
  static __thread float base[STEP], vector[STEP], chosen[STEP + 16];
  static __thread unsigned char mask[STEP / 8 + 2];
  const float factor = (float)*scale;
  uint32_t top = 0;
  for (int64_t at = 0; at < count; at += STEP) {
    const int64_t n = count - at < STEP ? count - at : STEP, bytes = (bit + n + 7) / 8;
    if (widened(fds[0], begins[0], kinds & 255, at, n, base)) return 1;
    if (widened(fds[1], begins[1], kinds >> 8, at, n, vector)) return 1;
    if (fetch(fds[2], begins[2] + at / 8, mask, bytes)) return 1;
    for (int64_t byte = 0; byte < bytes; byte++) memcpy(chosen + 8 * byte, ones[mask[byte]], sizeof ones[0]);
    for (int64_t i = 0; i < n; i++) out[at + i] = base[i] + factor * vector[i] * chosen[bit + i];
    for (int64_t i = 0; i < n; i++) {
      uint32_t bits;
      memcpy(&bits, out + at + i, 4);
      bits &= 0x7fffffff;
      top = bits > top ? bits : top;
    }
  }
  return top >= 0x7f800000;
}
"""


class Changes:
    """Adds masked changes to stored tensors; ``False`` where that must be done otherwise."""

    def __init__(self, built: Built) -> None:
        self._run = built.run

    def masked(self, base: At, vector: At, mask: At, bit: int, scale: float, out: Tensor) -> bool:
        """Stored entries plus the scaled ones of the vector, where the mask has ones from this bit on."""
        kinds = KINDS.get(base.dtype), KINDS.get(vector.dtype)
        if kinds[0] is None or kinds[1] is None or out.dtype != torch.float32:
            return False
        places = (base, vector, mask)
        status = self._run(
            (ctypes.c_int32 * 3)(*(place.fd for place in places)),
            (ctypes.c_int64 * 3)(*(place.begin for place in places)),
            ctypes.byref(ctypes.c_double(scale)),
            out.data_ptr(),
            None,
            bit,
            out.numel(),
            kinds[0] | kinds[1] << 8,
            None,
            None,
        )
        return int(status) == 0


def changes(compiler: Compiler) -> Changing | None:
    """The loop, where it gives the bits of torch."""
    built = compiler.build(TEXT)
    return Changes(built) if built is not None and _agrees(Changes(built)) else None


def _agrees(ours: Changes) -> bool:
    """On numbers such as models have, of every kind."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, _TRIED, generator=generator) * 0.02
    wide[:, ::17], wide[:, 5::101] = 0.0, -0.0
    codes = torch.randint(0, 256, (-(-(_TRIED + _SHIFT) // 8),), generator=generator, dtype=torch.uint8)
    bits = (codes[:, None] >> torch.arange(8)) & 1
    chosen = bits.flatten()[_SHIFT : _SHIFT + _TRIED].float()
    out = torch.empty(_TRIED)
    for kind in KINDS:
        stored = [part.to(torch_dtype(kind)) for part in wide]
        with tempfile.TemporaryFile() as file:
            for part in (*stored, codes):
                file.write(part.view(torch.uint8).numpy().tobytes())
            file.flush()
            size = stored[0].numel() * stored[0].element_size()
            base, vector, mask = (At(file.fileno(), size * place, kind) for place in range(3))
            if not ours.masked(base, vector, mask, _SHIFT, 0.7, out):
                return False
            wanted = torch.addcmul(stored[0].float(), stored[1].float(), chosen, value=0.7)
            if not torch.equal(out.view(torch.int32), wanted.view(torch.int32)):
                return False
    return True
