"""What a bundle adds to a tensor, in one go from the files: numbers as they are stored, widened, chosen by
the bits of a mask and added, where torch does that in passes of their own.
"""

import ctypes
import tempfile
from functools import lru_cache

import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.stored import At, Changing
from merge.running.fused.compiler import Built, Compiler
from merge.running.fused.reading import KINDS, READING

_TRIED, _SHIFT = 20_003, 3
"""Entries on which the loop is held against torch, and the bit at which their mask begins."""

TEXT = (
    READING
    + """
enum { STEP = 1 << 14, PART = 1 << 10 };

static float ones[256][8];
__attribute__((constructor)) static void fill(void) {
  for (int byte = 0; byte < 256; byte++) for (int k = 0; k < 8; k++) ones[byte][k] = (byte >> k) & 1;
}

/* Base plus scale times a vector where a mask has ones, whose first byte holds the first entry at this bit. 1
   where a file ends or the result is not finite. */
int run(const int32_t *fds, const int64_t *begins, const double *scale, float *out, void *none,
        uint32_t bit, int64_t count, int64_t kinds, void *nothing, void *more) {
  static __thread unsigned char narrow[2][4 * STEP], mask[STEP / 8 + 2];
  const int kind[2] = {kinds & 255, kinds >> 8}, wide[2] = {width(kind[0]), width(kind[1])};
  const float factor = (float)*scale;
  uint32_t top = 0;
  for (int64_t at = 0; at < count; at += STEP) {
    const int64_t n = count - at < STEP ? count - at : STEP;
    for (int side = 0; side < 2; side++)
      if (fetch(fds[side], begins[side] + wide[side] * at, narrow[side], wide[side] * n)) return 1;
    if (fetch(fds[2], begins[2] + at / 8, mask, (bit + n + 7) / 8)) return 1;
    for (int64_t first = 0; first < n; first += PART) {
      const int64_t part = n - first < PART ? n - first : PART, bytes = (bit + part + 7) / 8;
      float base[PART], vector[PART], chosen[PART + 16], *const to = out + at + first;
      widen(narrow[0] + wide[0] * first, kind[0], part, base);
      widen(narrow[1] + wide[1] * first, kind[1], part, vector);
      for (int64_t byte = 0; byte < bytes; byte++)
        memcpy(chosen + 8 * byte, ones[mask[first / 8 + byte]], sizeof ones[0]);
      for (int64_t i = 0; i < part; i++) to[i] = base[i] + factor * vector[i] * chosen[bit + i];
      for (int64_t i = 0; i < part; i++) {
        uint32_t bits;
        memcpy(&bits, to + i, 4);
        bits &= 0x7fffffff;
        top = bits > top ? bits : top;
      }
    }
  }
  return top >= 0x7f800000;
}
"""
)


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


@lru_cache(maxsize=2)
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
