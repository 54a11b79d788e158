"""The parts of the C text that are the same for every program: vectors and what is done with them, folding,
and the walk over the blocks.
"""

PRELUDE = """
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef double vd __attribute__((vector_size(8 * LANES)));
typedef int64_t vl __attribute__((vector_size(8 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

static inline vf load_BF16(const uint16_t *from) {
  return (vf)(__builtin_convertvector(*(const vh_any *)from, vu) << 16);
}
static inline vf load_F32(const float *from) { return *(const vf_any *)from; }
#define load_F16(from) ({ vf r; for (int k = 0; k < LANES; k++) r[k] = (float)(from)[k]; r; })

static inline void store_BF16(uint16_t *to, vf x) {
  const vu bits = (vu)x;
  *(vh_any *)to = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh);
}
static inline void store_F32(float *to, vf x) { *(vf_any *)to = x; }
#define store_F16(to, x) do { for (int k = 0; k < LANES; k++) (to)[k] = (_Float16)(x)[k]; } while (0)

static inline vf where_f(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
static inline vd where_d(vi narrow, vd yes, vd no) {
  const vl mask = __builtin_convertvector(narrow, vl);
  return (vd)(((vl)yes & mask) | ((vl)no & ~mask));
}
static inline vf neg_f(vf x) { return -x; }
static inline vd neg_d(vd x) { return -x; }
static inline vf abs_f(vf x) { return (vf)((vi)x & 0x7fffffff); }
static inline vd abs_d(vd x) { return (vd)((vl)x & 0x7fffffffffffffffLL); }
static inline vf square_f(vf x) { return x * x; }
static inline vd square_d(vd x) { return x * x; }
static inline vf reciprocal_f(vf x) { return 1.0f / x; }
static inline vd reciprocal_d(vd x) { return 1.0 / x; }
#define BOTH(k, mask_of) \\
  static inline v##k at_least_##k(v##k x, v##k low) { return where_##k(mask_of(x < low), low, x); } \\
  static inline v##k at_most_##k(v##k x, v##k high) { return where_##k(mask_of(x > high), high, x); } \\
  static inline v##k hardshrink_##k(v##k x, v##k l) { \\
    return where_##k(mask_of((x >= -l) & (x <= l)), (v##k)EACH(0), x); } \\
  static inline v##k maximum_##k(v##k a, v##k b) { \\
    return where_##k(mask_of((a > b) | (a != a)), a, b); } \\
  static inline v##k minimum_##k(v##k a, v##k b) { \\
    return where_##k(mask_of((a < b) | (a != a)), a, b); } \\
  static inline v##k sign_##k(v##k x) { \\
    const v##k one = EACH(1), none = EACH(0); \\
    return where_##k(mask_of(x > 0), one, none) - where_##k(mask_of(x < 0), one, none); }
#define MASK_F(m) ((vi)(m))
#define MASK_D(m) __builtin_convertvector((m), vi)
BOTH(f, MASK_F)
BOTH(d, MASK_D)

static inline vf bernoulli(vu bits, uint32_t limit) {
  return (vf)(((vi)bits < (int32_t)limit) & (vi)(vf)EACH(1.0f));
}
static inline vf uniform(vu bits, uint32_t unused) {
  (void)unused;
  return __builtin_convertvector((vi)((bits >> 8) & 0xffffff), vf) * 0x1p-24f;
}
static inline void count_high(uint32_t *counts, vu bits, int64_t left) {
  uint32_t bins[LANES] __attribute__((aligned(64)));
  *(vu *)bins = bits >> 16;
  if (left >= LANES) for (int k = 0; k < LANES; k++) counts[bins[k]]++;
  else for (int k = 0; k < left; k++) counts[bins[k]]++;
}
static inline void count_nonzero(uint32_t *count, vi found, int64_t left) {
  if (left < LANES) found &= (vi)COUNTING < (int32_t)left;
  int32_t many = 0;
  for (int k = 0; k < LANES; k++) many -= found[k];
  *count += many;
}
/* Whether any lane is set, and the numbers of those that are, one after another. */
typedef int8_t vb __attribute__((vector_size(LANES)));
static inline int some(vi lanes) {
  const vb narrow = __builtin_convertvector(lanes, vb);
  uint64_t words[LANES / 8], any = 0;
  memcpy(words, &narrow, LANES);
  for (int k = 0; k < LANES / 8; k++) any |= words[k];
  return any != 0;
}
#if defined(__AVX512F__) && LANES == 16
#include <immintrin.h>
static inline int chosen(uint32_t *into, vu numbers, vi lanes) {
  const __mmask16 mask = _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes);
  _mm512_storeu_si512(into, _mm512_maskz_compress_epi32(mask, (__m512i)numbers));
  return __builtin_popcount(mask);
}
#else
static inline int chosen(uint32_t *into, vu numbers, vi lanes) {
  int many = 0;
  if (some(lanes)) for (int k = 0; k < LANES; k++) { into[many] = numbers[k]; many -= lanes[k]; }
  return many;
}
#endif
static inline int count_window(uint32_t *hits, vu bits, int64_t left, uint32_t low, uint32_t size,
                               vi *above) {
  vi over = (vi)bits >= (int32_t)(low + size);
  const vu at = bits - low;
  vi found = at < size;
  if (left < LANES) {
    over &= (vi)COUNTING < (int32_t)left;
    found &= (vi)COUNTING < (int32_t)left;
  }
  *above += over;
  return chosen(hits, at, found);
}
static inline void count_low(uint32_t *counts, vu bits, int64_t left, uint32_t high) {
  const vi found = (bits >> 16) == high;
  if (some(found)) for (int k = 0; k < LANES && k < left; k++) if (found[k]) counts[bits[k] & 0xffff]++;
}
"""

FOLDS = """
static inline vd keep(vl valid, vd x) {
  const vl none = EACH(INT64_MIN);
  return (vd)(((vl)x & valid) | (none & ~valid));
}
static int64_t halves(int64_t n, int64_t *offset, int64_t *most) {
  int64_t width[LEVELS + 1] = {n};
  for (int level = 0; level < LEVELS; level++) width[level + 1] = (width[level] + 1) / 2;
  for (unsigned step = 0; step < 1 << LEVELS; step++) {
    offset[step] = 0;
    most[step] = INT64_MAX;
    for (int level = LEVELS; level > 0; level--) if (step >> (level - 1) & 1) {
      offset[step] += width[level];
      const int64_t limit = width[level - 1] - 1 - offset[step];
      if (limit < most[step]) most[step] = limit;
    }
  }
  return width[LEVELS];
}
static double folded(double *row, int64_t width) {
  while (width > 1) {
    const int64_t half = (width + 1) / 2;
    for (int64_t at = 0; at < width - half; at++) row[at] += row[at + half];
    width = half;
  }
  return row[0];
}
"""

DRIVER = """
enum { FINE, BROKEN, SHORT, FAILED };

static int fetch(int fd, int64_t at, unsigned char *to, int64_t size) {
  while (size > 0) {
    const ssize_t got = pread(fd, to, size, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got ? FAILED : SHORT;
    to += got; at += got; size -= got;
  }
  return FINE;
}

/* Inputs come from files (fd >= 0, at byte offsets) or from memory; scratch has room for a block of each. */
int run(const int32_t *fds, const int64_t *offsets, void *const *memory, const double *numbers,
        const uint32_t *words, uint32_t first, int64_t count, int64_t step, void *const *sinks,
        unsigned char *scratch) {
  for (int64_t done = 0; done < count; done += step) {
    const int64_t n = count - done < step ? count - done : step;
    unsigned char *in[INPUTS], *free_ = scratch;
    for (int k = 0; k < INPUTS; k++) {
      const int64_t size = n * WIDTH[k];
      in[k] = free_;
      free_ += (int64_t)(BLOCK + PAD) * WIDTH[k];
      if (fds[k] < 0) memcpy(in[k], (unsigned char *)memory[k] + done * WIDTH[k], size);
      else {
        const int status = fetch(fds[k], offsets[k] + done * WIDTH[k], in[k], size);
        if (status) return status;
      }
      memset(in[k] + size, 0, PAD * WIDTH[k]);
    }
    if (block(in, numbers, words, first + (uint32_t)done, n, step, sinks, done)) return BROKEN;
  }
  return FINE;
}
"""
