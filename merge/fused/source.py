"""A traced program as C: vectors of a few entries at a time, from stored numbers to results in one go.

Explicit vectors (a GNU extension, split by the compiler where the processor's are shorter) and no contraction
of products and sums: every operation rounds as torch's does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from merge.fused.prelude import DRIVER, FOLDS, PRELUDE
from merge.fused.trace import Program
from merge.kernels.keyed import ROUNDS
from merge.sizing import PIECE_ELEMENTS

BLOCK = 1 << 15
LEAST_COLUMNS = 64
"""Fewer are not summed by loops: too many rows would lie between."""
PAD = 64
"""Entries beyond a block that may be read, and written to what is stored."""
ROWS = -1
HEAD = 16
"""Counters before what lies in a window."""
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
_LIMITS = {"BF16": 0x7F7F0000, "F16": 0x477FE000, "F32": 0x7F7FFFFF}
"""Bits of the largest float32 that each dtype can hold."""
_LEVELS = 6
"""Levels of folding that are done in passing; the rest on what is left of a piece."""
COPIES = ("", "b")
"""Ends of the names in two copies of a body that take turns, where entries are stored."""
_SHORT = 60
"""Statements of a body that may be written out several times."""


@dataclass(frozen=True)
class Sink:
    """Where a node goes: ``store`` (of ``dtype``), ``high``, ``low``, ``nonzero`` and ``window`` counts,
    ``sum`` of pieces (with ``size`` ``ROWS``, of rows), or sums of pieces down the ``columns`` (``size`` of
    them, which ``word`` tells too).

    ``word`` is the slot of the upper bits that ``low`` looks for, and of the lower end of a ``window``, which
    its upper end follows. A window is told in ``HEAD`` counters: 64 bits each for what is above it, not below
    its upper end, not below its lower end, and for how many lie between, whose bits follow; the last of them
    says for how many of these there is room.
    """

    kind: str
    node: int
    dtype: str = ""
    word: int = -1
    size: int = 0


def piecewise(sinks: Sequence[Sink]) -> bool:
    """Whether a block must be a piece."""
    return any(sink.kind in ("sum", "columns") for sink in sinks)


def block_of(sinks: Sequence[Sink]) -> int:
    """The most entries that the loop's body works on at a time."""
    return PIECE_ELEMENTS if piecewise(sinks) else BLOCK


def text(program: Program, sinks: Sequence[Sink], dtypes: Sequence[str]) -> str:
    """The C source for inputs of these dtypes; exports ``run``."""
    nodes = used(program, sinks)
    lanes = 8 if any(program.nodes[node].kind == "d" for node in nodes) else 16
    order = _ORDERS.get(sinks[0].kind, _plain)
    copies = COPIES if all(sink.kind == "store" for sink in sinks) else COPIES[:1]
    bodies = [list(_body(program, nodes, sinks, dtypes, copy)) for copy in copies]
    slots = {program.nodes[node].slot for node in nodes if program.nodes[node].op == "input"}
    read = (str(int(place in slots)) for place in range(len(dtypes)))
    return "\n".join(
        [
            f"#define LANES {lanes}",
            f"#define INPUTS {len(dtypes)}",
            f"#define BLOCK {block_of(sinks)}",
            f"#define PAD {PAD}",
            f"#define LEVELS {_LEVELS}",
            f"#define HEAD {HEAD}",
            f"#define SINKS {len(sinks)}",
            f"#define STORED {WIDTHS.get(sinks[0].dtype, 0)}",
            f"static const int WIDTH[INPUTS] = {{{', '.join(str(WIDTHS[name]) for name in dtypes)}}};",
            f"static const int READ[INPUTS] = {{{', '.join(read)}}};",
            f"#define EACH(x) {{{', '.join(['x'] * lanes)}}}",
            f"#define COUNTING {{{', '.join(map(str, range(lanes)))}}}",
            PRELUDE,
            *([FOLDS] if sinks[0].kind == "sum" else []),
            _mix(),
            "static int block(unsigned char *const *in, const double *numbers, const uint32_t *words,",
            "                 uint32_t first, int64_t n, int64_t step_, void *const *sinks, int64_t done) {",
            *(f"  const {_TYPE['h' + name]} *in{place} = (const void *)in[{place}];"
              for place, name in enumerate(dtypes)),
            *_hoisted(program, nodes, sinks),
            "  vu top = EACH(0);",
            *order(bodies, sinks),
            "  int any = 0;",
            *_ends(sinks),
            f"  for (int lane = 0; lane < LANES; lane++) any |= top[lane] > {_LIMITS['F32']}u;",
            "  return any;",
            "}",
            DRIVER,
        ]
    )  # fmt: skip


def used(program: Program, sinks: Sequence[Sink]) -> list[int]:
    """The nodes that sinks depend on, in their order."""
    found: set[int] = set()
    waiting = [sink.node for sink in sinks]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += program.nodes[node].args
    return sorted(found)


def _hoisted(program: Program, nodes: Sequence[int], sinks: Sequence[Sink]) -> Iterator[str]:
    """What is the same for all entries, and the sinks' memory."""
    for node in nodes:
        each = program.nodes[node]
        if each.op == "number":
            kind = "float" if each.kind == "f" else "double"
            yield f"  const v{each.kind} x{node} = EACH(({kind})numbers[{each.slot}]);"
    for place, sink in enumerate(sinks):
        if sink.kind == "store":
            yield f"  {_TYPE[sink.dtype]} *out{place} = ({_TYPE[sink.dtype]} *)sinks[{place}] + done;"
            yield f"  vu top{place} = EACH(0);"
        elif sink.kind == "sum":
            yield f"  double *out{place} = (double *)sinks[{place}] + done / step_;"
        elif sink.kind == "columns":
            yield f"  const int64_t columns{place} = words[{sink.word}];"
            yield f"  double *out{place} = (double *)sinks[{place}] + done / step_ * columns{place};"
        else:
            yield f"  uint32_t *out{place} = (uint32_t *)sinks[{place}];"
        if sink.kind == "nonzero":
            yield f"  vi filled{place} = EACH(0);"
        if sink.kind == "low":
            yield f"  const uint32_t high{place} = words[{sink.word}];"
        if sink.kind == "window":
            yield f"  const vu low{place} = EACH(words[{sink.word}]);"
            yield f"  const vu high{place} = EACH(words[{sink.word + 1}]);"
            yield f"  vi above{place} = EACH(0), top{place} = EACH(0), least{place} = EACH(0);"
            yield f"  uint32_t hits{place}[BLOCK + LANES]; int64_t many{place} = 0;"


def _ends(sinks: Sequence[Sink]) -> Iterator[str]:
    """What is added up, and whether all is well, at the end of a block."""
    for place, sink in enumerate(sinks):
        if sink.kind == "store":
            limit = _LIMITS[sink.dtype]
            yield f"  for (int lane = 0; lane < LANES; lane++) any |= top{place}[lane] > {limit}u;"
        if sink.kind == "nonzero":
            yield f"  for (int lane = 0; lane < LANES; lane++) *out{place} -= filled{place}[lane];"
        if sink.kind == "window":
            told = f"above{place}, top{place}, least{place}"
            yield f"  if (tell(out{place}, {told}, hits{place}, many{place})) return 1;"


def _body(
    program: Program, nodes: Sequence[int], sinks: Sequence[Sink], dtypes: Sequence[str], copy: str
) -> Iterator[str]:
    """The statements for the entries ``i`` to ``i + LANES``; names of what is theirs end in ``copy``."""
    for node in nodes:
        each = program.nodes[node]
        if each.op == "input":
            yield f"    const vf x{node}{copy} = load_{dtypes[each.slot]}(in{each.slot} + i{copy});"
            yield f"    top = LARGER(top, (vu)x{node}{copy} & 0x7fffffffu);"
        elif each.op != "number":
            kind = "i" if each.kind == "b" else each.kind
            yield f"    const v{kind} x{node}{copy} = {_expression(program, node, copy)};"
    for place, sink in enumerate(sinks):
        yield from _into(sink, place, _name(program, sink.node, copy), program.nodes[sink.node].kind, copy)


def _name(program: Program, node: int, copy: str) -> str:
    """Plain numbers are the same for all entries."""
    return f"x{node}" if program.nodes[node].op == "number" else f"x{node}{copy}"


def _into(sink: Sink, place: int, value: str, kind: str, copy: str) -> Iterator[str]:
    if sink.kind == "store":
        yield f"    top{place} = LARGER(top{place}, (vu){value} & 0x7fffffffu);"
        yield f"    store_{sink.dtype}(out{place} + i{copy}, {value});"
    elif sink.kind in ("sum", "columns"):
        yield f"    vd sum{place} = {value};"
    elif sink.kind == "nonzero":
        found = value if kind == "b" else _mask(f"({value} != 0)", kind)
        yield f"    filled{place} += among({found}, left);"
    else:
        yield f"    const vu bits{place} = (vu){value} & 0x7fffffffu;"
        yield f"    {_COUNT[sink.kind].format(place)};"


def _plain(bodies: Sequence[Sequence[str]], _: Sequence[Sink]) -> Iterator[str]:
    """Statement by statement for two vectors in turns: while one waits for a result, the other goes on."""
    yield f"  for (int64_t i = 0; i < n; i += {len(bodies)} * LANES) {{"
    yield "    const int64_t left = n - i; (void)left;"
    if len(bodies) > 1:
        yield f"    const int64_t i{COPIES[1]} = i + LANES;"
    for together in zip(*bodies, strict=True):
        yield from together
    yield "  }"


def _folding(bodies: Sequence[Sequence[str]], sinks: Sequence[Sink]) -> Iterator[str]:
    """A piece of n entries is folded in halves: entry i meets i + half, and so on. The entries are visited in
    an order in which every pair meets while it is at hand, the first levels in registers. Where an entry has
    no partner it meets -0.0, which changes nothing.
    """
    (body,) = bodies
    sums = [place for place, sink in enumerate(sinks) if sink.kind == "sum"]
    near = _near(len(body), len(sums))
    for place in sums:
        yield f"  vd held{place}[LEVELS + 1][4];"
        yield f"  double row{place}[BLOCK >> LEVELS] __attribute__((aligned(64)));"
    yield "  int64_t offset[1 << LEVELS], most[1 << LEVELS];"
    yield "  const int64_t width = halves(n, offset, most);"
    yield "  for (int64_t column = 0; column < width; column += 4 * LANES) {"
    yield f"    for (unsigned step = 0; step < 1 << LEVELS; step += {1 << near})"
    yield "    for (int part = 0; part < 4 && column + part * LANES < width; part++) {"
    yield "    const int64_t at = column + part * LANES;"
    yield from (f"    vd near{level}_{place};" for level in range(near + 1) for place in sums)
    for step in range(1 << near):
        yield f"    {{ const int64_t i = offset[step + {step}] + at, left = n - i; (void)left;"
        yield from body
        yield "    if (at + LANES > width - 1 - LEVELS) {"
        yield f"      const vl valid = at + (vl)COUNTING <= most[step + {step}];"
        yield from (f"      sum{place} = keep(valid, sum{place});" for place in sums)
        yield "    }"
        level = 0
        while step >> level & 1:
            yield from (f"    sum{place} = near{level}_{place} + sum{place};" for place in sums)
            level += 1
        yield from (f"    near{level}_{place} = sum{place};" for place in sums)
        yield "    }"
    yield f"    int level = {near};"
    yield f"    for (unsigned bits = step >> {near}; bits & 1; bits >>= 1, level++) {{"
    yield from (
        f"      near{near}_{place} = held{place}[level][part] + near{near}_{place};" for place in sums
    )
    yield "    }"
    yield from (f"    held{place}[level][part] = near{near}_{place};" for place in sums)
    yield "    }"
    yield "    for (int part = 0; part < 4; part++) for (int lane = 0; lane < LANES; lane++) {"
    yield "      const int64_t at = column + part * LANES + lane;"
    yield "      if (at >= width) break;"
    yield from (f"      row{place}[at] = held{place}[LEVELS][part][lane];" for place in sums)
    yield "    }"
    yield "  }"
    yield from (f"  *out{place} = folded(row{place}, width);" for place in sums)


def _near(statements: int, sums: int) -> int:
    """Levels of folding that are written out: few where there is much to write, or to hold."""
    if statements > _SHORT:
        return 0
    return 3 if sums <= 4 else 2 if sums <= 8 else 1


def _down(bodies: Sequence[Sequence[str]], sinks: Sequence[Sink]) -> Iterator[str]:
    """A piece of whole rows is folded in halves: row i meets row i + half, and so on; the first two levels in
    registers, where four rows meet. A line of the cache is used up before the next. What lies beyond the last
    column is that of the next row, and left out in the end.
    """
    (body,), places = bodies, range(len(sinks))
    yield "  const int64_t columns = columns0, rows = n / columns;"
    yield "  const int64_t half = (rows + 1) / 2, quarter = (half + 1) / 2;"
    yield f"  vd met[BLOCK / {4 * LEAST_COLUMNS}][4][{len(sinks)}];"
    yield "  for (int64_t column = 0; column < columns; column += 4 * LANES) {"
    yield "    for (int64_t row = 0; row < quarter; row++)"
    yield "    for (int part = 0; part < 4; part++) {"
    yield "      const int64_t at = column + part * LANES;"
    yield "      if (at >= columns) break;"
    yield from (f"      vd near{place}, far{place};" for place in places)
    yield from _met("row", body, [f"near{place} = sum{place};" for place in places])
    yield "      if (row + half < rows)"
    yield from _met("row + half", body, [f"near{place} += sum{place};" for place in places])
    yield "      if (row + quarter < half) {"
    yield from _met("row + quarter", body, [f"far{place} = sum{place};" for place in places])
    yield "      if (row + quarter + half < rows)"
    yield from _met("row + quarter + half", body, [f"far{place} += sum{place};" for place in places])
    yield from (f"      near{place} += far{place};" for place in places)
    yield "      }"
    yield from (f"      met[row][part][{place}] = near{place};" for place in places)
    yield "    }"
    yield "    for (int part = 0; part < 4; part++) {"
    yield "      for (int64_t width = quarter, less; width > 1; width = less) {"
    yield "        less = (width + 1) / 2;"
    yield "        for (int64_t row = 0; row < width - less; row++) {"
    yield from (f"          met[row][part][{place}] += met[row + less][part][{place}];" for place in places)
    yield "        }"
    yield "      }"
    yield "      const int64_t at = column + part * LANES, left = columns - at;"
    yield from (f"      put(out{place} + at, met[0][part] + {place}, left);" for place in places)
    yield "    }"
    yield "  }"


def _met(row: str, body: Sequence[str], into: Sequence[str]) -> Iterator[str]:
    """What the entries of this row add, and where that goes."""
    yield f"    {{ const int64_t i = ({row}) * columns + at, left = n - i; (void)left;"
    yield from body
    yield from into
    yield "    }"


_ORDERS = {"sum": _folding, "columns": _down}
"""In which order entries are visited, unless it does not matter."""


def _expression(program: Program, node: int, copy: str) -> str:
    each = program.nodes[node]
    names = [_name(program, arg, copy) for arg in each.args]
    wide = "d" if any(program.nodes[arg].kind == "d" for arg in each.args) else "f"
    if each.op in _COMPARE:
        return _mask(f"({names[0]} {_COMPARE[each.op]} {names[1]})", wide)
    if each.op in _INFIX:
        return f"{names[0]} {_INFIX[each.op]} {names[1]}"
    if each.op in _LOGIC:
        return _LOGIC[each.op].format(*names)
    if each.op in ("bernoulli", "uniform"):
        return f"{each.op}(draw(first, i{copy}, words + {each.slot}), words[{each.slot + 2}])"
    if each.op == "cast":
        return _cast(names[0], program.nodes[each.args[0]].kind, each.kind)
    return f"{each.op}_{each.kind}({', '.join(names)})"


def _mask(comparison: str, kind: str) -> str:
    return f"(vi){comparison}" if kind == "f" else f"TO_VI({comparison})"


def _cast(name: str, have: str, want: str) -> str:
    if have == "b":
        single = f"((vf)({name} & (vi)(vf)EACH(1.0f)))"
        return single if want == "f" else f"TO_D({single})"
    return f"TO_{want.upper()}({name})"


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
    "window": "many{0} += count_window(hits{0} + many{0}, bits{0}, left, low{0}, high{0}, &above{0}, "
    "&top{0}, &least{0})",
}
_TYPE = {
    "BF16": "uint16_t", "F16": "_Float16", "F32": "float",
    "hBF16": "uint16_t", "hF16": "_Float16", "hF32": "float",
}  # fmt: skip
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_LOGIC = {"and": "({0} & {1})", "or": "({0} | {1})", "xor": "({0} ^ {1})", "not": "(~{0})"}
