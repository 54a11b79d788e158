"""The C text that ranks the magnitudes within a row, as ``merge.kernels.row_ranks`` does, without sorting
where that can be had: changes of models have few digits, and so few values that a row's are soon counted.

Every magnitude falls into a bin; what is in the bins below gives its rank. A bin has one magnitude of few
digits, whose entries share the mean of their places, and now and then some of more digits: these few are
compared with each other. Rows where they are many are sorted.
"""

RANKING = """
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(PLAIN)
#include <immintrin.h>
#define WIDE
#endif

/* A small number is added to magnitudes, and their upper bits then name their bins: above it these get wider
   with every octave, below it they are all as wide. They are counted in LANES of DEEP bins that follow each
   other, so that vectors add them up. Zeros have several counters: what adds to one number twice must wait.
   LONGEST and MOST are the entries of a row and of a lane, MORE the comparisons for each entry of a row that
   take less time than sorting, FAR the entries to either side that do. */
enum { LOW = 14, OCTAVES = 6, LANES = 32, DEEP = 128, BINS = LANES * DEEP, ZEROS = 16, LONGEST = 65535,
       MOST = 32767, MORE = 32, LAG = 64, FAR = 24 };
typedef uint16_t vs __attribute__((vector_size(2 * LANES)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef int32_t vi_any __attribute__((vector_size(64), aligned(4), may_alias));
typedef float vf __attribute__((vector_size(64)));
static const vi PLACES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
typedef union { float number; uint32_t bits; } single;
static const uint32_t MAGNITUDE = 0x7fffffffu, REST = (1u << LOW) - 1;

/* What one row needs. Counts become where bins begin within their lane, or that and where they end together;
   lanes tell where lanes begin. */
struct desk {
  vs counts[2][DEEP + ZEROS];
  int32_t lanes[LANES];
  uint64_t *order, *other;
  uint32_t *columns, *sizes, *bins, *many; /* of some entries: column, magnitude, bin, and its count */
  float *ranks;
  uint16_t *places; /* of the bins of all entries */
};

static void furnish(struct desk *desk, int64_t columns) {
  const int64_t wide = columns + 2 * FAR + LANES;
  desk->order = (uint64_t *)(desk + 1);
  desk->other = desk->order + wide;
  desk->columns = (uint32_t *)(desk->other + wide);
  desk->sizes = desk->columns + wide;
  desk->bins = desk->sizes + wide;
  desk->many = desk->bins + wide;
  desk->ranks = (float *)(desk->many + wide);
  desk->places = (uint16_t *)(desk->ranks + wide);
}

static inline uint32_t bin_of(uint32_t place) { return place % LANES * DEEP + place / LANES; }

/* Finds the place of each entry's bin, counts in two tables by turns, and lists what has too many digits for
   its bin. Places are counted when they have long been written: reading right after writing is slow. */
static int64_t find(const uint32_t *values, int64_t n, single little, struct desk *desk) {
  uint16_t *one = (uint16_t *)desk->counts[0], *two = (uint16_t *)desk->counts[1], *places = desk->places;
  uint32_t *fine = desk->columns;
  const uint32_t base = little.bits >> LOW;
  int64_t many = 0, at = 0;
#ifdef WIDE
#define ALL _mm512_set1_epi32
  const __m512i counting = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i zeros = _mm512_add_epi32(ALL(BINS), _mm512_mullo_epi32(counting, ALL(LANES)));
  const __m512 more = _mm512_set1_ps(little.number);
  for (__m512i column = counting; at < n; at += 16, column = _mm512_add_epi32(column, ALL(16))) {
    const __mmask16 here = n - at < 16 ? (1u << (n - at)) - 1 : 0xffff;
    const __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi32(here, values + at), ALL(MAGNITUDE));
    const __m512 size = _mm512_castsi512_ps(bits), moved = _mm512_add_ps(size, more);
    const __m512i upper = _mm512_castps_si512(moved), even = _mm512_and_si512(upper, ALL(~REST));
    const __m512i lane = _mm512_sub_epi32(_mm512_srli_epi32(upper, LOW + 7), ALL(base / DEEP));
    const __m512i deep = _mm512_and_si512(_mm512_srli_epi32(upper, LOW - 5), ALL((DEEP - 1) * LANES));
    const __m512i place = _mm512_or_si512(deep, lane);
    const __m512i own = _mm512_mask_mov_epi32(place, _mm512_testn_epi32_mask(bits, bits), zeros);
    const __mmask16 left = _mm512_cmpneq_ps_mask(_mm512_sub_ps(_mm512_castsi512_ps(even), more), size);
    _mm256_storeu_si256((void *)(places + at), _mm512_cvtepi32_epi16(own));
    _mm512_storeu_si512(fine + many, _mm512_maskz_compress_epi32(left, column));
    many += __builtin_popcount(left);
    for (int64_t k = at - LAG; k >= 0 && k < at - LAG + 16; k += 2) {
      one[places[k]]++;
      two[places[k + 1]]++;
    }
  }
  at = at > LAG ? at - LAG : 0;
#else
  for (; at < n; at++) {
    const single size = {.bits = values[at] & MAGNITUDE}, moved = {.number = size.number + little.number};
    const uint32_t bin = (moved.bits >> LOW) - base;
    places[at] = size.bits ? bin % DEEP * LANES + bin / DEEP : BINS + at % ZEROS * LANES;
    fine[many] = at;
    many += (moved.bits & REST) || moved.number - little.number != size.number;
  }
  at = 0;
#endif
  for (; at < n; at++) (at % 2 ? two : one)[places[at]]++;
  return many;
}

/* Turns counts into what bins begin and end with together, or begin with; gives the most that a bin holds,
   zeros aside, and less than 0 where a lane has too many. */
static int add_up(struct desk *desk, int both) {
  const vs none = {0}, own = both ? ~none : none;
  vs sum = none, most = none;
  for (int k = DEEP; k < DEEP + ZEROS; k++) sum[0] += desk->counts[0][k][0] + desk->counts[1][k][0];
  for (int k = DEEP; k < DEEP + ZEROS; k++) desk->counts[0][k] = sum;
  for (int k = 0; k < DEEP; k++) {
    const vs here = desk->counts[0][k] + desk->counts[1][k], more = (vs)(here > most), before = sum;
    most = (here & more) | (most & ~more);
    sum += here;
    desk->counts[0][k] = before + (sum & own);
  }
  int32_t all = 0, largest = 0, full = 0;
  for (int k = 0; k < LANES; k++) {
    desk->lanes[k] = both ? 2 * all - 1 : all;
    all += sum[k];
    largest = most[k] > largest ? most[k] : largest;
    full |= sum[k] > MOST;
  }
  return full ? -1 : largest;
}

/* Ranks what has many digits among what else is in its bin, and takes it out of there. */
static void compare(int64_t many, single little, struct desk *desk) {
  uint16_t *sums = (uint16_t *)desk->counts[0];
  const uint32_t *sizes = desk->sizes, *bins = desk->bins;
  for (int64_t at = 0; at < many; at++) {
    const uint32_t size = sizes[at], bin = bins[at];
    const single upper = {.bits = (little.bits >> LOW) + bin_of(bin) << LOW};
    const single even = {.number = upper.number - little.number};
    int32_t twice = sums[bin] + desk->lanes[bin % LANES];
    if (desk->many[at] > 1) {
      int32_t less = 0, equal = 0, inside = 0;
      for (int64_t k = 0; k < many; k++) {
        less += (bins[k] == bin) & (sizes[k] < size);
        equal += sizes[k] == size;
        inside += bins[k] == bin;
      }
      const int32_t others = desk->many[at] - inside;
      twice += 2 * less + equal - (int32_t)desk->many[at] + (size > even.bits ? 2 * others : 0);
    }
    desk->ranks[at] = 0.5f * (float)twice;
    desk->many[at] = size > even.bits ? -1 : 1;
  }
  for (int64_t at = 0; at < many; at++) sums[bins[at]] += desk->many[at];
}

static void tell(float *ranks, int64_t n, const struct desk *desk) {
  const uint16_t *sums = (const uint16_t *)desk->counts[0], *places = desk->places;
  int64_t at = 0;
#ifdef WIDE
  const __m512i first = _mm512_loadu_si512(desk->lanes), second = _mm512_loadu_si512(desk->lanes + 16);
  for (; at < n; at += 16) {
    const __mmask16 here = n - at < 16 ? (1u << (n - at)) - 1 : 0xffff;
    const __m512i place = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, places + at));
    const __m512i sum = _mm512_and_si512(_mm512_i32gather_epi32(place, sums, 2), ALL(0xffff));
    const __m512i twice = _mm512_add_epi32(sum, _mm512_permutex2var_epi32(first, place, second));
    const __m512 rank = _mm512_mul_ps(_mm512_cvtepi32_ps(twice), _mm512_set1_ps(0.5f));
    _mm512_mask_storeu_ps(ranks + at, here, rank);
  }
#else
  for (; at < n; at++) ranks[at] = 0.5f * (float)(sums[places[at]] + desk->lanes[places[at] % LANES]);
#endif
}

/* Puts entries in order by their bins; what is before and after each in its bin, and so near, then tells its
   rank. Whether no bin is too full. */
static int near(uint32_t *values, int64_t n, struct desk *desk) {
  const int reach = add_up(desk, 0) - 1;
  if (reach < 0 || reach > FAR) return 0;
  uint16_t *starts = (uint16_t *)desk->counts[0];
  uint32_t *sizes = desk->sizes + FAR, *columns = desk->columns;
  const uint32_t zeros = starts[BINS];
  for (int64_t at = 0; at < n; at++) {
    const uint32_t place = desk->places[at], to = desk->lanes[place % LANES] + starts[place]++;
    if (place >= BINS) continue;
    sizes[to] = values[at] & MAGNITUDE;
    columns[to] = at;
  }
  memset(sizes + zeros - FAR, 0, FAR * sizeof *sizes);
  for (int64_t at = n; at < n + FAR + LANES; at++) sizes[at] = MAGNITUDE;
  float *ranks = (float *)values;
  for (int64_t at = 0; at < n; at++) if (desk->places[at] >= BINS) ranks[at] = 0.5f * (float)(zeros - 1);
  for (int64_t at = zeros; at < n; at += 16) {
    const vi size = *(const vi_any *)(sizes + at);
    vi twice = 2 * (PLACES + (int32_t)at);
    for (int k = 1; k <= reach; k++) {
      const vi before = *(const vi_any *)(sizes + at - k), after = *(const vi_any *)(sizes + at + k);
      twice += (vi)(before > size) + (vi)(before >= size) - (vi)(after < size) - (vi)(after <= size);
    }
    const vf found = 0.5f * __builtin_convertvector(twice, vf);
    for (int k = 0; k < 16 && at + k < n; k++) ranks[columns[at + k]] = found[k];
  }
  return 1;
}

/* Whether a row could be ranked by counting; if so, ranks are where its entries were. */
static int counted(uint32_t *values, int64_t n, single little, struct desk *desk) {
  memset(desk->counts, 0, sizeof desk->counts);
  const int64_t many = find(values, n, little, desk);
  if (many * many > MORE * n) return near(values, n, desk);
  const uint16_t *one = (uint16_t *)desk->counts[0], *two = (uint16_t *)desk->counts[1];
  for (int64_t at = 0; at < many; at++) {
    desk->sizes[at] = values[desk->columns[at]] & MAGNITUDE;
    desk->bins[at] = desk->places[desk->columns[at]];
    desk->many[at] = one[desk->bins[at]] + two[desk->bins[at]];
  }
  if (add_up(desk, 1) < 0) return 0;
  compare(many, little, desk);
  tell((float *)values, n, desk);
  for (int64_t at = 0; at < many; at++) memcpy(values + desk->columns[at], desk->ranks + at, sizeof *values);
  return 1;
}

/* Sorts by the digits of magnitudes, the lowest first. */
static const uint64_t *sorted(const uint32_t *values, int64_t n, struct desk *desk) {
  static const int shifts[] = {0, 11, 22, 32};
  uint64_t *from = desk->order, *to = desk->other;
  for (int64_t at = 0; at < n; at++) from[at] = (uint64_t)(values[at] & MAGNITUDE) << 32 | at;
  for (int digit = 0; digit < 3; digit++) {
    const uint32_t last = (1u << (shifts[digit + 1] - shifts[digit])) - 1;
    const int shift = 32 + shifts[digit];
    uint32_t starts[2049] = {0};
    for (int64_t at = 0; at < n; at++) starts[(from[at] >> shift & last) + 1]++;
    for (uint32_t k = 0; k < last; k++) starts[k + 1] += starts[k];
    for (int64_t at = 0; at < n; at++) to[starts[from[at] >> shift & last]++] = from[at];
    uint64_t *done = to;
    to = from;
    from = done;
  }
  return from;
}

/* Puts ranks where the entries of a row were: equal magnitudes share the mean of their places, or not. */
static void rank(uint32_t *values, int64_t n, int shared, struct desk *desk) {
  if (shared && n <= LONGEST) {
    uint32_t largest = 0;
    for (int64_t at = 0; at < n; at++) {
      const uint32_t bits = values[at] & MAGNITUDE;
      largest = bits > largest ? bits : largest;
    }
    const uint32_t octave = largest >> 23;
    const single little = {.bits = (octave > OCTAVES ? octave - OCTAVES : 1) << 23};
    if (counted(values, n, little, desk)) return;
  }
  const uint64_t *order = sorted(values, n, desk);
  for (int64_t at = 0, end; at < n; at = end) {
    for (end = at + 1; shared && end < n && order[end] >> 32 == order[at] >> 32; end++) {}
    const float mean = (float)(at + end - 1) * 0.5f;
    for (int64_t k = at; k < end; k++) memcpy(values + (uint32_t)order[k], &mean, sizeof mean);
  }
}
"""
