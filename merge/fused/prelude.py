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

/* Conversions: the compiler takes vectors apart where one instruction would do. */
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#if LANES == 16
#define WIDE(x) ((vu)_mm512_cvtepu16_epi32((__m256i)(x)))
#define SHORT(x) ((vh)_mm512_cvtepi32_epi16((__m512i)(x)))
#define LARGER(x, y) ((vu)_mm512_max_epu32((__m512i)(x), (__m512i)(y)))
#define AT_LEAST_F(x, low) ((vf)_mm512_max_ps((__m512)(low), (__m512)(x)))
#define AT_MOST_F(x, high) ((vf)_mm512_min_ps((__m512)(high), (__m512)(x)))
#else
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
static inline vf load_F32(const float *from) { return *(const vf_any *)from; }
#define load_F16(from) ({ vf r; for (int k = 0; k < LANES; k++) r[k] = (float)(from)[k]; r; })

static inline void store_BF16(uint16_t *to, vf x) {
  const vu bits = (vu)x;
  *(vh_any *)to = SHORT((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
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
/* Counts what is above a window, at its upper end, and within it with both ends; lists what lies between the
   ends and tells how many that are. Hardly any vector has something in a narrow window. */
#if defined(__AVX512F__) && LANES == 16
#include <immintrin.h>
static inline int count_window(uint32_t *hits, vu bits, int64_t left, vu low, vu high, vi *above, vi *top,
                               vi *least) {
  const __mmask16 valid = left < LANES ? (1u << left) - 1 : 0xffff;
  const __m512i all = (__m512i)bits, minus = _mm512_set1_epi32(-1);
  const __mmask16 over = _mm512_mask_cmpgt_epu32_mask(valid, all, (__m512i)high);
  const __mmask16 near = _mm512_mask_cmpge_epu32_mask(valid & ~over, all, (__m512i)low);
  *above = (vi)_mm512_mask_add_epi32((__m512i)*above, over, (__m512i)*above, minus);
  if (!near) return 0;
  const __mmask16 end = _mm512_mask_cmpeq_epu32_mask(near, all, (__m512i)high);
  const __mmask16 between = _mm512_mask_cmpgt_epu32_mask(near & ~end, all, (__m512i)low);
  *top = (vi)_mm512_mask_add_epi32((__m512i)*top, end, (__m512i)*top, minus);
  *least = (vi)_mm512_mask_add_epi32((__m512i)*least, near, (__m512i)*least, minus);
  _mm512_storeu_si512(hits, _mm512_maskz_compress_epi32(between, all));
  return __builtin_popcount(between);
}
#else
static inline int count_window(uint32_t *hits, vu bits, int64_t left, vu low, vu high, vi *above, vi *top,
                               vi *least) {
  const vi valid = left < LANES ? (vi)((vi)COUNTING < (int32_t)left) : (vi)EACH(-1);
  const vi over = (vi)((vi)bits > (vi)high) & valid, near = (vi)((vi)bits >= (vi)low) & ~over & valid;
  *above += over;
  if (!some(near)) return 0;
  const vi end = (vi)(bits == high) & near, between = (vi)((vi)bits > (vi)low) & ~end & near;
  *top += end;
  *least += near;
  int many = 0;
  for (int k = 0; k < LANES; k++) { hits[many] = bits[k]; many -= between[k]; }
  return many;
}
#endif
/* Adds what a block has counted, each as negative numbers; whether there is no room for what it lists. */
static int tell(uint32_t *out, vi above, vi top, vi least, const uint32_t *hits, int64_t many) {
  int64_t told[4];
  memcpy(told, out, sizeof told);
  for (int k = 0; k < LANES; k++) {
    told[0] -= above[k];
    told[1] -= above[k] + top[k];
    told[2] -= above[k] + least[k];
  }
  if (told[3] + many > (int64_t)out[HEAD - 1]) return 1;
  memcpy(out + HEAD + told[3], hits, many * sizeof *hits);
  told[3] += many;
  memcpy(out, told, sizeof told);
  return 0;
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

FETCH = """
enum { FINE, BROKEN, SHORT, FAILED };
enum { IN_MEMORY = -1, AS_IT_IS = -2 };

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
   are repeated, or how many times each is), of which what is followed by PAD entries may be read AS_IT_IS;
   scratch has room for a block of each. What no sink is made of is not read. The low half of steps tells the
   entries of a block, the other how many after its beginning the next one begins. After the sinks comes the
   file (unless below zero), and the byte in it, to which what the first one stores is written, some blocks
   at a time. */
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
      if (fds[k] == AS_IT_IS) { in[k] = (unsigned char *)memory[k] + at * WIDTH[k]; continue; }
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
