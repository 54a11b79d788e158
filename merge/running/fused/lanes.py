"""sha256 of several files at a time on one thread, by the processor's own instructions for it.

Every round of sha256 waits for the one before; in that time the processor can do rounds of other files.
"""

import ctypes
import hashlib
import struct
from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np

from merge.checkpoint.digests import Engine, Plain
from merge.running.fused.compiler import Built, Compiler

LANES = 4
_BLOCK = 64
_TRIED = (1, 55, 64, 65, 200, 3000)
"""Lengths of pieces on which the loop is held against the standard library."""

TEXT = """
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#ifndef __SHA__
#error "this processor has no instructions for sha256"
#endif

struct lane { uint32_t state[8], filled; unsigned char carry[64]; };
static const uint32_t K[64] __attribute__((aligned(64))) = {ROOTS};
#define EACH _Pragma("GCC unroll 4") for (int k = 0; k < n; k++)

/* Whole blocks of n lanes, their rounds in turns. */
static inline __attribute__((always_inline)) void rounds(const int n, struct lane *const *lanes,
    const unsigned char *const *from, int64_t blocks) {
  const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  __m128i a[MOST], b[MOST], m[MOST][4];
  const unsigned char *at[MOST];
  EACH {
    const __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const void *)lanes[k]->state), 0xb1);
    const __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(lanes[k]->state + 4)), 0x1b);
    a[k] = _mm_alignr_epi8(low, high, 8);
    b[k] = _mm_blend_epi16(high, low, 0xf0);
    at[k] = from[k];
  }
  for (; blocks > 0; blocks--) {
    __m128i before[MOST][2];
    EACH { before[k][0] = a[k]; before[k][1] = b[k]; }
    _Pragma("GCC unroll 16") for (int g = 0; g < 16; g++) EACH {
      __m128i *const w = m[k];
      if (g < 4) w[g] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(at[k] + 16 * g)), order);
      else w[g & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w[g & 3], w[(g + 1) & 3]),
                                                         _mm_alignr_epi8(w[(g + 3) & 3], w[(g + 2) & 3], 4)),
                                           w[(g + 3) & 3]);
      const __m128i sum = _mm_add_epi32(w[g & 3], _mm_load_si128((const void *)(K + 4 * g)));
      b[k] = _mm_sha256rnds2_epu32(b[k], a[k], sum);
      a[k] = _mm_sha256rnds2_epu32(a[k], b[k], _mm_shuffle_epi32(sum, 0x0e));
    }
    EACH { a[k] = _mm_add_epi32(a[k], before[k][0]); b[k] = _mm_add_epi32(b[k], before[k][1]); at[k] += 64; }
  }
  EACH {
    const __m128i low = _mm_shuffle_epi32(a[k], 0x1b), high = _mm_shuffle_epi32(b[k], 0xb1);
    _mm_storeu_si128((void *)lanes[k]->state, _mm_blend_epi16(low, high, 0xf0));
    _mm_storeu_si128((void *)(lanes[k]->state + 4), _mm_alignr_epi8(high, low, 8));
  }
}

static void together(int n, struct lane *const *lanes, const unsigned char *const *from, int64_t blocks) {
  if (n == 1) rounds(1, lanes, from, blocks);
  else if (n == 2) rounds(2, lanes, from, blocks);
  else if (n == 3) rounds(3, lanes, from, blocks);
  else rounds(4, lanes, from, blocks);
}

/* Adds sizes[k] bytes to each of n lanes. */
int run(struct lane *const *lanes, const unsigned char *const *data, const int64_t *sizes, void *none,
        void *nothing, uint32_t n, int64_t zero, int64_t nought, void *no, void *more) {
  struct lane *open[MOST];
  const unsigned char *from[MOST];
  int64_t left[MOST], least;
  int many = 0;
  for (unsigned k = 0; k < n; k++) {
    struct lane *lane = lanes[k];
    const unsigned char *at = data[k], *const carry = lane->carry;
    int64_t size = sizes[k];
    if (lane->filled) {
      const int64_t step = size < 64 - lane->filled ? size : 64 - lane->filled;
      memcpy(lane->carry + lane->filled, at, step);
      lane->filled += step; at += step; size -= step;
      if (lane->filled < 64) continue;
      together(1, &lane, &carry, 1);
    }
    lane->filled = size % 64;
    memcpy(lane->carry, at + size - lane->filled, lane->filled);
    if (size >= 64) { open[many] = lane; from[many] = at; left[many++] = size / 64; }
  }
  for (; many; ) {
    least = left[0];
    for (int k = 1; k < many; k++) if (left[k] < least) least = left[k];
    together(many, open, from, least);
    int kept = 0;
    for (int k = 0; k < many; k++) if (left[k] > least) {
      open[kept] = open[k]; from[kept] = from[k] + 64 * least; left[kept++] = left[k] - least;
    }
    many = kept;
  }
  return 0;
}
"""


class _State(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 8), ("filled", ctypes.c_uint32), ("carry", ctypes.c_ubyte * 64))
    total = 0


class Lanes:
    """Hashes up to ``LANES`` files together."""

    lanes = LANES

    def __init__(self, built: Built) -> None:
        self._run = built.run

    def start(self) -> _State:
        """The words that the standard begins with."""
        return _State(words=(ctypes.c_uint32 * 8)(*(_fraction(isqrt(p << 64)) for p in _primes(8))))

    def update(self, states: Sequence[Any], pieces: Sequence[memoryview]) -> None:
        """Adds a piece to each state."""
        many = len(states)
        views = [np.frombuffer(piece, np.uint8) for piece in pieces]
        self._run(
            (ctypes.c_void_p * many)(*map(ctypes.addressof, states)),
            (ctypes.c_void_p * many)(*(view.ctypes.data for view in views)),
            (ctypes.c_int64 * many)(*map(len, pieces)),
            None, None, many, 0, 0, None, None,
        )  # fmt: skip
        for state, piece in zip(states, pieces, strict=True):
            state.total += len(piece)

    def digest(self, state: Any) -> str:
        """After the standard's last block, which tells the length in bits."""
        fill, bits = bytes((55 - state.total) % _BLOCK), struct.pack(">Q", 8 * state.total)
        self.update([state], [memoryview(b"\x80" + fill + bits)])
        return struct.pack(">8I", *state.words).hex()


def engine(compiler: Compiler) -> Engine:
    """The quickest that gives the digests of the standard library."""
    built = compiler.build(text())
    return Lanes(built) if built is not None and _agrees(Lanes(built)) else Plain()


def text() -> str:
    """The C source."""
    roots = ", ".join(f"0x{_fraction(_cube_root(prime << 96)):08x}" for prime in _primes(64))
    return f"#define MOST {LANES}\n" + TEXT.replace("{ROOTS}", f"{{{roots}}}")


def _agrees(lanes: Lanes) -> bool:
    """By one to ``LANES`` files together, in pieces of several lengths."""
    content = memoryview(bytes(range(251)) * 20)
    for many in range(1, LANES + 1):
        states, wanted = [lanes.start() for _ in range(many)], [hashlib.sha256() for _ in range(many)]
        for turn in range(len(_TRIED)):
            sizes = [_TRIED[(turn + place) % len(_TRIED)] for place in range(many)]
            pieces = [content[turn : turn + size] for size in sizes]
            lanes.update(states, pieces)
            for digest, piece in zip(wanted, pieces, strict=True):
                digest.update(piece)
        if [lanes.digest(state) for state in states] != [digest.hexdigest() for digest in wanted]:
            return False
    return True


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root(value: int) -> int:
    """The largest whole number whose cube is not larger."""
    root = 1 << -(-value.bit_length() // 3)
    while (less := (2 * root + value // (root * root)) // 3) < root:
        root = less
    return root


def _fraction(root: int) -> int:
    """The upper 32 bits of what follows the point, of a root in units of 2^-32."""
    return root & 0xFFFFFFFF
