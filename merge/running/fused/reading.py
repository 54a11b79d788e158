"""C that reads stored numbers and widens them, for loops that take tensors from their files."""

KINDS = {"BF16": 0, "F16": 1, "F32": 2}
"""What the C calls the dtypes that it knows."""

READING = """
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { BF16 = 0, F16 = 1 };

static int fetch(int fd, int64_t at, void *to, int64_t size) {
  for (unsigned char *next = to; size > 0; ) {
    const ssize_t got = pread(fd, next, size, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 1;
    next += got; at += got; size -= got;
  }
  return 0;
}

static int width(int kind) { return kind > F16 ? 4 : 2; }

/* So many stored numbers of a kind, as floats. */
static void widen(const unsigned char *from, int kind, int64_t n, float *to) {
  if (kind > F16) memcpy(to, from, 4 * n);
  else if (kind == BF16) for (int64_t i = 0; i < n; i++) {
    uint16_t half;
    memcpy(&half, from + 2 * i, 2);
    const uint32_t bits = (uint32_t)half << 16;
    memcpy(to + i, &bits, 4);
  } else for (int64_t i = 0; i < n; i++) {
    _Float16 half;
    memcpy(&half, from + 2 * i, 2);
    to[i] = half;
  }
}
"""
