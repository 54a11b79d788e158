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
typedef uint32_t vu_any __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* Conversions: the compiler takes vectors apart where one instruction would do. */
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#if LANES == 16
#define NAUGHT(sum, x) ((vf)_mm512_fmadd_ps((__m512)(x), _mm512_setzero_ps(), (__m512)(sum)))
#define WIDE(x) ((vu)_mm512_cvtepu16_epi32((__m256i)(x)))
#define SHORT(x) ((vh)_mm512_cvtepi32_epi16((__m512i)(x)))
#define LARGER(x, y) ((vu)_mm512_max_epu32((__m512i)(x), (__m512i)(y)))
#define AT_LEAST_F(x, low) ((vf)_mm512_max_ps((__m512)(low), (__m512)(x)))
#define AT_MOST_F(x, high) ((vf)_mm512_min_ps((__m512)(high), (__m512)(x)))
#else
#define NAUGHT(sum, x) ((vf)_mm256_fmadd_ps((__m256)(x), _mm256_setzero_ps(), (__m256)(sum)))
#define WIDE(x) ((vu)_mm256_cvtepu16_epi32((__m128i)(x)))
#define SHORT(x) ((vh)_mm256_cvtepi32_epi16((__m256i)(x)))
#define LARGER(x, y) ((vu)_mm256_max_epu32((__m256i)(x), (__m256i)(y)))
#define AT_LEAST_F(x, low) ((vf)_mm256_max_ps((__m256)(low), (__m256)(x)))
#define AT_MOST_F(x, high) ((vf)_mm256_min_ps((__m256)(high), (__m256)(x)))
#define AT_LEAST_D(x, low) ((vd)_mm512_max_pd((__m512d)(low), (__m512d)(x)))
#define AT_MOST_D(x, high) ((vd)_mm512_min_pd((__m512d)(high), (__m512d)(x)))
#define TO_D(x) ((vd)_mm512_cvtps_pd((__m256)(x)))
#define TO_F(x) ((vf)_mm512_cvtpd_ps((__m512d)(x)))
#define TO_VL(x) ((vl)_mm512_cvtepi32_epi64((__m256i)(x)))
#define TO_VI(x) ((vi)_mm512_cvtepi64_epi32((__m512i)(x)))
#endif
#else
#define WIDE(x) __builtin_convertvector((x), vu)
#define SHORT(x) __builtin_convertvector((x), vh)
#define LARGER(x, y) ({ const vu x_ = (x), y_ = (y), m_ = (vu)(x_ > y_); (x_ & m_) | (y_ & ~m_); })
#endif
/* Adds nothing, unless x is not finite: then the sum is not a number from there on. */
#ifndef NAUGHT
#define NAUGHT(sum, x) ((sum) + (x) * 0.0f)
#endif
#ifndef AT_LEAST_F
#define AT_LEAST_F(x, low) where_f((vi)((x) < (low)), low, x)
#define AT_MOST_F(x, high) where_f((vi)((x) > (high)), high, x)
#endif
#ifndef AT_LEAST_D
#define AT_LEAST_D(x, low) where_d(TO_VI((x) < (low)), low, x)
#define AT_MOST_D(x, high) where_d(TO_VI((x) > (high)), high, x)
#endif
#ifndef TO_D
#define TO_D(x) __builtin_convertvector((x), vd)
#define TO_F(x) __builtin_convertvector((x), vf)
#define TO_VL(x) __builtin_convertvector((x), vl)
#define TO_VI(x) __builtin_convertvector((x), vi)
#endif

static inline vf load_BF16(const uint16_t *from) { return (vf)(WIDE(*(const vh_any *)from) << 16); }
/* Of entries two by two, each of a pair: no lane has to change its place. */
static inline vf even_BF16(const uint16_t *from) { return (vf)(*(const vu_any *)from << 16); }
static inline vf odd_BF16(const uint16_t *from) { return (vf)(*(const vu_any *)from & 0xffff0000u); }
static inline vf load_F32(const float *from) { return *(const vf_any *)from; }
#define load_F16(from) ({ vf r; for (int k = 0; k < LANES; k++) r[k] = (float)(from)[k]; r; })

static inline vu rounded(vf x) { return (vu)x + 0x7fff + (((vu)x >> 16) & 1); }
static inline void store_BF16(uint16_t *to, vf x) { *(vh_any *)to = SHORT(rounded(x) >> 16); }
static inline void pairs_BF16(uint16_t *to, vf even, vf odd) {
  *(vu_any *)to = rounded(even) >> 16 | (rounded(odd) & 0xffff0000u);
}
static inline void store_F32(float *to, vf x) { *(vf_any *)to = x; }
#define store_F16(to, x) do { for (int k = 0; k < LANES; k++) (to)[k] = (_Float16)(x)[k]; } while (0)

static inline vf where_f(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
static inline vd where_d(vi narrow, vd yes, vd no) {
  const vl mask = TO_VL(narrow);
  return (vd)(((vl)yes & mask) | ((vl)no & ~mask));
}
static inline vf neg_f(vf x) { return -x; }
static inline vd neg_d(vd x) { return -x; }
static inline vf abs_f(vf x) { return (vf)((vi)x & 0x7fffffff); }
static inline vd abs_d(vd x) { return (vd)((vl)x & 0x7fffffffffffffffLL); }
static inline vf copysign_f(vf x, vf y) { return (vf)(((vi)x & 0x7fffffff) | ((vi)y & ~0x7fffffff)); }
static inline vd copysign_d(vd x, vd y) {
  return (vd)(((vl)x & 0x7fffffffffffffffLL) | ((vl)y & ~0x7fffffffffffffffLL));
}
static inline vf square_f(vf x) { return x * x; }
static inline vd square_d(vd x) { return x * x; }
static inline vf reciprocal_f(vf x) { return 1.0f / x; }
static inline vd reciprocal_d(vd x) { return 1.0 / x; }
static inline vf at_least_f(vf x, vf low) { return AT_LEAST_F(x, low); }
static inline vf at_most_f(vf x, vf high) { return AT_MOST_F(x, high); }
static inline vd at_least_d(vd x, vd low) { return AT_LEAST_D(x, low); }
static inline vd at_most_d(vd x, vd high) { return AT_MOST_D(x, high); }
#define BOTH(k, mask_of) \\
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
#define MASK_D(m) TO_VI(m)
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
static inline vi among(vi found, int64_t left) {
  return left < LANES ? found & ((vi)COUNTING < (int32_t)left) : found;
}
static inline void put(double *to, const vd *from, int64_t left) {
  if (left >= LANES) memcpy(to, from, sizeof *from);
  else if (left > 0) memcpy(to, from, left * sizeof *to);
}
/* Whether any lane is set. */
typedef int8_t vb __attribute__((vector_size(LANES)));
static inline int some(vi lanes) {
  const vb narrow = __builtin_convertvector(lanes, vb);
  uint64_t words[LANES / 8], any = 0;
  memcpy(words, &narrow, LANES);
  for (int k = 0; k < LANES / 8; k++) any |= words[k];
  return any != 0;
}
static inline void count_low(uint32_t *counts, vu bits, int64_t left, uint32_t high) {
  const vi found = (bits >> 16) == high;
  if (some(found)) for (int k = 0; k < LANES && k < left; k++) if (found[k]) counts[bits[k] & 0xffff]++;
}
"""

WINDOWS = """
enum { PART = 1 << 10 }; /* Entries that are kept to be looked at, in the cache next to the processor. */
/* A window of magnitudes. Above the largest there is nothing (OPEN), and none is below 0, which many may be
   (ZEROS): then there is less to ask. Hardly any vector has something in a QUIET one; of a CROWDED one there
   is no asking first, as nobody could guess the answer. */
enum { OPEN, ZEROS, QUIET, CROWDED };
struct window { vu low, high; int kind; };
static inline struct window window_of(const uint32_t *words) {
  const int kind = words[1] == 0x7fffffff ? OPEN : words[1] == 0 ? ZEROS : words[2] ? CROWDED : QUIET;
  const struct window found = {EACH(words[0]), EACH(words[1]), kind};
  return found;
}
#if defined(__AVX512F__) && LANES == 16
#include <immintrin.h>
typedef __mmask16 vm;
#define FIRST(n) ((vm)((n) < LANES ? (1u << (n)) - 1 : 0xffff))
#define ABOVE(m, x, y) _mm512_mask_cmpgt_epu32_mask(m, (__m512i)(x), (__m512i)(y))
#define LEAST(m, x, y) _mm512_mask_cmpge_epu32_mask(m, (__m512i)(x), (__m512i)(y))
#define LESS(x, m) ((vi)_mm512_mask_add_epi32((__m512i)(x), m, (__m512i)(x), _mm512_set1_epi32(-1)))
#define SOME(m) (m)
static inline int list(uint32_t *to, vu bits, vm m) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(m, (__m512i)bits));
  return __builtin_popcount(_cvtmask16_u32(m));
}
#else
typedef vi vm;
#define FIRST(n) ((n) < LANES ? (vi)((vi)COUNTING < (int32_t)(n)) : (vi)EACH(-1))
#define ABOVE(m, x, y) ((vi)((vi)(x) > (vi)(y)) & (m))
#define LEAST(m, x, y) ((vi)((vi)(x) >= (vi)(y)) & (m))
#define LESS(x, m) ((x) + (m))
#define SOME(m) some(m)
static inline int list(uint32_t *to, vu bits, vm m) {
  int many = 0;
  for (int k = 0; k < LANES; k++) { to[many] = bits[k]; many -= m[k]; }
  return many;
}
#endif
static inline int look(uint32_t *hits, vu bits, vm all, const struct window *window, int kind, vi *above) {
  if (kind != OPEN) {
    const vm over = ABOVE(all, bits, window->high);
    *above = LESS(*above, over);
    if (kind == ZEROS) return 0;
    all &= ~over;
  }
  const vm within = LEAST(all, bits, window->low);
  return kind == CROWDED || SOME(within) ? list(hits, bits, within) : 0;
}
/* The first of these vectors with something as large as low, or one of three before it; or of the last. */
static inline const vu *high_enough(const vu *kept, const vu *end, vu low) {
  for (; end - kept > 3; kept += 4) {
    const vu most = LARGER(LARGER(kept[0], kept[1]), LARGER(kept[2], kept[3]));
    if (SOME(LEAST(FIRST(LANES), most, low))) break;
  }
  return kept;
}
static inline int64_t look_all(uint32_t *hits, const vu *kept, int64_t n, const struct window *window,
                               int kind, vi *above) {
  const struct window own = *window;
  const vu *const end = kept + n / LANES;
  int64_t many = 0;
  vi over = *above;
#pragma GCC unroll 4
  for (; kept < end; kept++) {
    if (kind == OPEN && (kept = high_enough(kept, end, own.low)) == end) break;
    many += look(hits + many, *kept, FIRST(LANES), &own, kind, &over);
  }
  if (n % LANES) many += look(hits + many, *kept, FIRST(n % LANES), &own, kind, &over);
  *above = over;
  return many;
}
/* Counts how many of n are above a window, as negative numbers; lists what is in it with its ends, and tells
   how many that are. */
static int64_t count_window(uint32_t *hits, const vu *kept, int64_t n, const struct window *window,
                            vi *above) {
  switch (window->kind) {
    case OPEN: return look_all(hits, kept, n, window, OPEN, above);
    case ZEROS: return look_all(hits, kept, n, window, ZEROS, above);
    case QUIET: return look_all(hits, kept, n, window, QUIET, above);
    default: return look_all(hits, kept, n, window, CROWDED, above);
  }
}
static void count_filled(uint32_t *out, const vu *kept, int64_t n) {
  vi filled = EACH(0);
  for (; n > 0; n -= LANES) filled += among((vi)(*kept++ != 0), n);
  for (int k = 0; k < LANES; k++) *out -= filled[k];
}
/* Where pairs were kept apart, puts what is left of the last ones together. */
static void close_up(vu *kept, int64_t n) {
  const int64_t rest = n % (2 * LANES), even = (rest + 1) / 2;
  uint32_t *last = (uint32_t *)kept + n - rest;
  memmove(last + even, last + LANES, rest / 2 * sizeof *last);
}
/* Adds what a block of n has counted; whether there is no room for what lies between the ends. */
static int tell(uint32_t *out, int64_t n, const struct window *window, vi above, uint32_t *hits,
                int64_t many) {
  const uint32_t low = window->low[0], high = window->high[0];
  int64_t told[4], over = 0, top = 0, between = 0;
  memcpy(told, out, sizeof told);
  for (int k = 0; k < LANES; k++) over -= above[k];
  for (int64_t k = 0; k < many; k++) {
    const uint32_t each = hits[k];
    hits[between] = each;
    top += each == high;
    between += (each != high) & (each != low);
  }
  told[0] += over;
  told[1] += window->kind == ZEROS ? n : over + top;
  told[2] += window->kind == ZEROS ? n : over + many;
  if (told[3] + between > (int64_t)out[HEAD - 1]) return 1;
  memcpy(out + HEAD + told[3], hits, between * sizeof *hits);
  told[3] += between;
  memcpy(out, told, sizeof told);
  return 0;
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

FETCH = """
enum { FINE, BROKEN, SHORT, FAILED };
enum { IN_MEMORY = -1, AS_IT_IS = -2, IN_PAGES = -3 };

static int fetch(int fd, int64_t at, unsigned char *to, int64_t size) {
  while (size > 0) {
    const ssize_t got = pread(fd, to, size, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got ? FAILED : SHORT;
    to += got; at += got; size -= got;
  }
  return FINE;
}
"""

DRIVER = (
    FETCH
    + """
static int keep_in(int fd, int64_t at, const unsigned char *from, int64_t size) {
  while (size > 0) {
    const ssize_t put = pwrite(fd, from, size, at);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return FAILED;
    from += put; at += put; size -= put;
  }
  return FINE;
}

/* What so many numbers, over and over again, are from entry first on. */
static void repeat(float *to, const float *from, int64_t many, int64_t first, int64_t n) {
  for (int64_t at = first % many; n > 0; at = 0) {
    const int64_t size = n < many - at ? n : many - at;
    memcpy(to, from + at, size * sizeof *to);
    to += size; n -= size;
  }
}

/* What numbers are, each of them so many times, from entry first on. */
static void spread(float *to, const float *from, int64_t times, int64_t first, int64_t n) {
  int64_t at = first % times;
  for (from += first / times; n > 0; from++, at = 0) {
    const int64_t size = n < times - at ? n : times - at;
    for (int64_t k = 0; k < size; k++) to[k] = *from;
    to += size; n -= size;
  }
}

/* Inputs come from files (fd >= 0, at byte offsets) or from memory (an offset there tells how many numbers
   are repeated, or how many times each is), of which what is followed by PAD entries may be read AS_IT_IS
   (what lies IN_PAGES, which may be followed by anything, where PAD of the count follow the block); scratch
   has room for a block of each. What no sink is made of is not read. The low half of steps tells the entries
   of a block, the other how many after its beginning the next one begins. After the sinks comes the file
   (unless below zero), and the byte in it, to which what the first one stores is written, some blocks at a
   time. */
enum { WRITTEN_TOGETHER = 1 << 18 };

int run(const int64_t *fds, const int64_t *offsets, void *const *memory, const double *numbers,
        const uint32_t *words, uint32_t first, int64_t count, int64_t steps, void *const *sinks,
        unsigned char *scratch) {
  const int64_t step = steps & 0xffffffff, stride = steps >> 32, *const target = (void *)(sinks + SINKS);
  int64_t written = 0;
  for (int64_t done = 0, at = 0; done < count; done += step, at += stride) {
    const int64_t n = count - done < step ? count - done : step;
    unsigned char *in[INPUTS], *free_ = scratch;
    for (int k = 0; k < INPUTS; k++) {
      const int64_t size = n * WIDTH[k];
      in[k] = free_;
      free_ += (int64_t)(BLOCK + PAD) * WIDTH[k];
      if (!READ[k]) continue;
      if (fds[k] == AS_IT_IS || (fds[k] == IN_PAGES && done + n + PAD <= count)) {
        in[k] = (unsigned char *)memory[k] + at * WIDTH[k];
        continue;
      }
      const int64_t entry = (int64_t)first + at;
      if (fds[k] < 0 && offsets[k] > 0) repeat((float *)in[k], memory[k], offsets[k], entry, n);
      else if (fds[k] < 0 && offsets[k] < 0) spread((float *)in[k], memory[k], -offsets[k], entry, n);
      else if (fds[k] < 0) memcpy(in[k], (unsigned char *)memory[k] + at * WIDTH[k], size);
      else {
        const int status = fetch(fds[k], offsets[k] + at * WIDTH[k], in[k], size);
        if (status) return status;
      }
      memset(in[k] + size, 0, PAD * WIDTH[k]);
    }
    if (block(in, numbers, words, first + (uint32_t)at, n, step, sinks, done)) return BROKEN;
    const int64_t made = done + n - written, size = made * STORED;
    if (target[0] < 0 || (made < WRITTEN_TOGETHER && done + n < count)) continue;
    const unsigned char *const from = (unsigned char *)sinks[0] + written * STORED;
    if (keep_in(target[0], target[1] + written * STORED, from, size)) return FAILED;
    written = done + n;
  }
  return FINE;
}
"""
)
