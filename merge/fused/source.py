"""A traced program as C: vectors of a few entries at a time, from stored numbers to results in one go.

Explicit vectors (a GNU extension, split by the compiler where the processor's are shorter) and no contraction
of products and sums: every operation rounds as torch's does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from merge.fused.trace import Program
from merge.kernels.keyed import ROUNDS
from merge.sizing import PIECE_ELEMENTS

BLOCK = 1 << 15
PAD = 64
"""Entries beyond a block that may be read, and written to what is stored."""
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
_LIMITS = {"BF16": 0x7F7F0000, "F16": 0x477FE000, "F32": 0x7F7FFFFF}
"""Bits of the largest float32 that each dtype can hold."""
_LEVELS = 6
"""Levels of folding that are done in passing; the rest on what is left of a piece."""


@dataclass(frozen=True)
class Sink:
    """Where a node goes: ``store`` (of ``dtype``), ``high``, ``low``, ``nonzero`` and ``window`` counts, or
    ``sum`` of pieces.

    ``word`` is the slot of the upper bits that ``low`` looks for, and of the least magnitude of a ``window``,
    whose size follows. ``size`` is how many counters a window has besides the one of what is above.
    """

    kind: str
    node: int
    dtype: str = ""
    word: int = -1
    size: int = 0


def piecewise(sinks: Sequence[Sink]) -> bool:
    """Whether a block must be a piece."""
    return any(sink.kind == "sum" for sink in sinks)


def block_of(sinks: Sequence[Sink]) -> int:
    """The most entries that the loop's body works on at a time."""
    return PIECE_ELEMENTS if piecewise(sinks) else BLOCK


def text(program: Program, sinks: Sequence[Sink], dtypes: Sequence[str]) -> str:
    """The C source for inputs of these dtypes; exports ``run``."""
    used = _used(program, sinks)
    lanes = 8 if any(program.nodes[node].kind == "d" for node in used) else 16
    body = list(_body(program, used, sinks, dtypes))
    return "\n".join(
        [
            f"#define LANES {lanes}",
            f"#define INPUTS {len(dtypes)}",
            f"#define BLOCK {block_of(sinks)}",
            f"#define PAD {PAD}",
            f"#define LEVELS {_LEVELS}",
            f"static const int WIDTH[INPUTS] = {{{', '.join(str(WIDTHS[name]) for name in dtypes)}}};",
            f"#define EACH(x) {{{', '.join(['x'] * lanes)}}}",
            f"#define COUNTING {{{', '.join(map(str, range(lanes)))}}}",
            _PRELUDE,
            *([_FOLDS] if piecewise(sinks) else []),
            _mix(),
            "static int block(unsigned char *const *in, const double *numbers, const uint32_t *words,",
            "                 uint32_t first, int64_t n, int64_t step_, void *const *sinks, int64_t done) {",
            *(f"  const {_TYPE['h' + name]} *in{place} = (const void *)in[{place}];"
              for place, name in enumerate(dtypes)),
            *_hoisted(program, used, sinks),
            "  vi bad = EACH(0);",
            *(_folding(body, sinks) if piecewise(sinks) else _plain(body)),
            *_ends(sinks),
            "  int any = 0;",
            "  for (int lane = 0; lane < LANES; lane++) any |= bad[lane];",
            "  return any;",
            "}",
            _DRIVER,
        ]
    )  # fmt: skip


def _used(program: Program, sinks: Sequence[Sink]) -> list[int]:
    found: set[int] = set()
    waiting = [sink.node for sink in sinks]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += program.nodes[node].args
    return sorted(found)


def _hoisted(program: Program, used: Sequence[int], sinks: Sequence[Sink]) -> Iterator[str]:
    """What is the same for all entries, and the sinks' memory."""
    for node in used:
        each = program.nodes[node]
        if each.op == "number":
            kind = "float" if each.kind == "f" else "double"
            yield f"  const v{each.kind} x{node} = EACH(({kind})numbers[{each.slot}]);"
    for place, sink in enumerate(sinks):
        if sink.kind == "store":
            yield f"  {_TYPE[sink.dtype]} *out{place} = ({_TYPE[sink.dtype]} *)sinks[{place}] + done;"
        elif sink.kind == "sum":
            yield f"  double *out{place} = (double *)sinks[{place}] + done / step_;"
        else:
            yield f"  uint32_t *out{place} = (uint32_t *)sinks[{place}];"
        if sink.kind == "low":
            yield f"  const uint32_t high{place} = words[{sink.word}];"
        if sink.kind == "window":
            yield f"  const uint32_t low{place} = words[{sink.word}], size{place} = words[{sink.word + 1}];"
            yield f"  vi above{place} = EACH(0);"
            yield f"  uint32_t hits{place}[BLOCK + LANES]; int64_t many{place} = 0;"


def _ends(sinks: Sequence[Sink]) -> Iterator[str]:
    """What is added up at the end of a block."""
    for place, sink in enumerate(sinks):
        if sink.kind == "window":
            yield f"  for (int lane = 0; lane < LANES; lane++) out{place}[size{place}] -= above{place}[lane];"
            yield f"  for (int64_t hit = 0; hit < many{place}; hit++) out{place}[hits{place}[hit]]++;"


def _body(
    program: Program, used: Sequence[int], sinks: Sequence[Sink], dtypes: Sequence[str]
) -> Iterator[str]:
    """The statements for the entries ``i`` to ``i + LANES``."""
    for node in used:
        each = program.nodes[node]
        if each.op == "input":
            yield f"    const vf x{node} = load_{dtypes[each.slot]}(in{each.slot} + i);"
            yield f"    bad |= ((vi)x{node} & 0x7f800000) == 0x7f800000;"
        elif each.op != "number":
            kind = "i" if each.kind == "b" else each.kind
            yield f"    const v{kind} x{node} = {_expression(program, node)};"
    for place, sink in enumerate(sinks):
        yield from _into(sink, place, program.nodes[sink.node].kind)


def _into(sink: Sink, place: int, kind: str) -> Iterator[str]:
    value = f"x{sink.node}"
    if sink.kind == "store":
        yield f"    bad |= ((vi){value} & 0x7fffffff) > {_LIMITS[sink.dtype]};"
        yield f"    store_{sink.dtype}(out{place} + i, {value});"
    elif sink.kind == "sum":
        yield f"    vd sum{place} = {value};"
    elif sink.kind == "nonzero":
        found = value if kind == "b" else _mask(f"({value} != 0)", kind)
        yield f"    count_nonzero(out{place}, {found}, left);"
    else:
        yield f"    const vu bits{place} = (vu){value} & 0x7fffffffu;"
        yield f"    {_COUNT[sink.kind].format(place)};"


def _plain(body: Sequence[str]) -> Iterator[str]:
    yield "  for (int64_t i = 0; i < n; i += LANES) {"
    yield "    const int64_t left = n - i; (void)left;"
    yield from body
    yield "  }"


def _folding(body: Sequence[str], sinks: Sequence[Sink]) -> Iterator[str]:
    """A piece of n entries is folded in halves: entry i meets i + half, and so on. The entries are visited in
    an order in which every pair meets while it is at hand. Where an entry has no partner it meets -0.0,
    which changes nothing.
    """
    sums = [place for place, sink in enumerate(sinks) if sink.kind == "sum"]
    for place in sums:
        yield f"  vd held{place}[LEVELS + 1][4];"
        yield f"  double row{place}[BLOCK >> LEVELS] __attribute__((aligned(64)));"
    yield "  int64_t offset[1 << LEVELS], most[1 << LEVELS];"
    yield "  const int64_t width = halves(n, offset, most);"
    yield "  for (int64_t column = 0; column < width; column += 4 * LANES) {"
    yield "    for (unsigned step = 0; step < 1 << LEVELS; step++) for (int part = 0; part < 4; part++) {"
    yield "    const int64_t at = column + part * LANES, i = offset[step] + at, left = n - i; (void)left;"
    yield from body
    yield "    if (at + LANES > width - 1 - LEVELS) {"
    yield "      const vl valid = at + (vl)COUNTING <= most[step];"
    yield from (f"      sum{place} = keep(valid, sum{place});" for place in sums)
    yield "    }"
    yield "    int level = 0;"
    yield "    for (unsigned bits = step; bits & 1; bits >>= 1, level++) {"
    yield from (f"      sum{place} = held{place}[level][part] + sum{place};" for place in sums)
    yield "    }"
    yield from (f"    held{place}[level][part] = sum{place};" for place in sums)
    yield "    }"
    yield "    for (int part = 0; part < 4; part++) for (int lane = 0; lane < LANES; lane++) {"
    yield "      const int64_t at = column + part * LANES + lane;"
    yield "      if (at >= width) break;"
    yield from (f"      row{place}[at] = held{place}[LEVELS][part][lane];" for place in sums)
    yield "    }"
    yield "  }"
    yield from (f"  *out{place} = folded(row{place}, width);" for place in sums)


def _expression(program: Program, node: int) -> str:
    each = program.nodes[node]
    names = [f"x{arg}" for arg in each.args]
    wide = "d" if any(program.nodes[arg].kind == "d" for arg in each.args) else "f"
    if each.op in _COMPARE:
        return _mask(f"({names[0]} {_COMPARE[each.op]} {names[1]})", wide)
    if each.op in _INFIX:
        return f"{names[0]} {_INFIX[each.op]} {names[1]}"
    if each.op in _LOGIC:
        return _LOGIC[each.op].format(*names)
    if each.op in ("bernoulli", "uniform"):
        return f"{each.op}(draw(first, i, words + {each.slot}), words[{each.slot + 2}])"
    if each.op == "cast":
        return _cast(names[0], program.nodes[each.args[0]].kind, each.kind)
    return f"{each.op}_{each.kind}({', '.join(names)})"


def _mask(comparison: str, kind: str) -> str:
    return f"(vi){comparison}" if kind == "f" else f"__builtin_convertvector({comparison}, vi)"


def _cast(name: str, have: str, want: str) -> str:
    if have == "b":
        single = f"((vf)({name} & (vi)(vf)EACH(1.0f)))"
        return single if want == "f" else f"__builtin_convertvector({single}, vd)"
    return f"__builtin_convertvector({name}, v{want})"


def _mix() -> str:
    """The hash of ``merge.kernels.keyed.mix`` on vectors."""
    lines = ["static inline vu draw(uint32_t first, int64_t i, const uint32_t *key) {",
             "  vu h = (vu)COUNTING + (first + (uint32_t)i + key[0]);"]  # fmt: skip
    for number, (shift, factor) in enumerate(ROUNDS):
        lines.append(f"  h ^= h >> {shift}; h *= 0x{factor:X}u;{' h += key[1];' if number == 1 else ''}")
    return "\n".join([*lines, "  return h ^ (h >> 15);", "}"])


_COUNT = {
    "high": "count_high(out{0}, bits{0}, left)",
    "low": "count_low(out{0}, bits{0}, left, high{0})",
    "window": "many{0} += count_window(hits{0} + many{0}, bits{0}, left, low{0}, size{0}, &above{0})",
}
_TYPE = {
    "BF16": "uint16_t", "F16": "_Float16", "F32": "float",
    "hBF16": "uint16_t", "hF16": "_Float16", "hF32": "float",
}  # fmt: skip
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_LOGIC = {"and": "({0} & {1})", "or": "({0} | {1})", "xor": "({0} ^ {1})", "not": "(~{0})"}

_PRELUDE = """
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

_FOLDS = """
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

_DRIVER = """
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
