"""A traced program as C: vectors of a few entries at a time, from stored numbers to results in one go.

Explicit vectors (a GNU extension, split by the compiler where the processor's are shorter) and no contraction
of products and sums: every operation rounds as torch's does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from merge.kernels.keyed import ROUNDS
from merge.planning.sizing import PIECE_ELEMENTS
from merge.running.fused.orders import kept, visited
from merge.running.fused.prelude import DRIVER, FOLDS, PRELUDE, WINDOWS
from merge.running.fused.trace import Program

BLOCK = 1 << 15
LEAST_COLUMNS = 64
"""Fewer are not summed by loops: too many rows would lie between."""
PAD = 64
"""Entries beyond a block that may be read, and written to what is stored."""
MOST_STACK = 5 << 20
"""Bytes that a loop may take of a thread's stack, which usually has 8 MiB, and beyond which nobody looks."""
MOST_HITS = 1 << 19
"""Entries of all windows together that a block's hits may be."""
ROWS = -1
HEAD = 16
"""Counters before what lies in a window."""
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
_LIMITS = {"BF16": 0x7F7F0000, "F16": 0x477FE000, "F32": 0x7F7FFFFF}
"""Bits of the largest float32 that each dtype can hold."""
_LEVELS = 6
"""Levels of folding that are done in passing; the rest on what is left of a piece."""


@dataclass(frozen=True)
class Sink:
    """Where a node goes: ``store`` (of ``dtype``), ``high``, ``low``, ``nonzero`` and ``window`` counts,
    ``sum`` of pieces (with ``size`` ``ROWS``, of rows), or sums of pieces down the ``columns`` (``size`` of
    them, which ``word`` tells too).

    ``word`` is the slot of the upper bits that ``low`` looks for, and of the lower end of a ``window``, which
    its upper end follows, and whether it is crowded. A window is told in ``HEAD`` counters: 64 bits each for
    what is above it, not below its upper end, not below its lower end, and for how many lie between, whose
    bits follow; the last of them says for how many of these there is room. What is not zero may be counted of
    nodes that have a window.
    """

    kind: str
    node: int
    dtype: str = ""
    word: int = -1
    size: int = 0


@dataclass(frozen=True)
class Turn:
    """A copy of a loop's body: names of what is its own end in ``name``, and ``load`` reads its entries,
    which begin at ``at``.
    """

    name: str = ""
    load: str = "load"
    at: str = "i"


ALONE = (Turn(),)
TURNS = (Turn(), Turn("b", at="ib"))
PAIRS = (Turn(load="even"), Turn("b", "odd"))
"""Two vectors side by side, or of entries that alternate: those of 16 bits come apart, and together again,
by fewer steps.
"""


def piecewise(sinks: Sequence[Sink]) -> bool:
    """Whether a block must be a piece."""
    return any(sink.kind in ("sum", "columns") for sink in sinks)


def block_of(sinks: Sequence[Sink]) -> int:
    """The most entries that the loop's body works on at a time: fewer where many windows list theirs."""
    if piecewise(sinks):
        return PIECE_ELEMENTS
    windows = sum(sink.kind == "window" for sink in sinks)
    return BLOCK >> max(0, (BLOCK * windows - 1) // MOST_HITS).bit_length()


def stack_bytes(sinks: Sequence[Sink]) -> int:
    """About what the loop's body takes of the stack."""
    block = block_of(sinks)
    each = {
        "window": 4 * block,
        "sum": 8 * (block >> _LEVELS) + 8 * 4 * 8 * (_LEVELS + 1),
        "columns": 8 * 8 * 4 * (block // (4 * LEAST_COLUMNS)),
    }
    return sum(each.get(sink.kind, 0) for sink in sinks)


def text(program: Program, sinks: Sequence[Sink], dtypes: Sequence[str]) -> str:
    """The C source for inputs of these dtypes; exports ``run``."""
    nodes = used(program, sinks)
    lanes = 8 if any(program.nodes[node].kind == "d" for node in nodes) else 16
    slots = {program.nodes[node].slot for node in nodes if program.nodes[node].op == "input"}
    turns = _turns(sinks, [dtypes[slot] for slot in slots])
    bodies = [list(_body(program, nodes, sinks, dtypes, turn)) for turn in turns]
    naughts = [_naught(half, turn) for half in range(2) for turn in turns]
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
            f"#define LEAST_COLUMNS {LEAST_COLUMNS}",
            f"static const int WIDTH[INPUTS] = {{{', '.join(str(WIDTHS[name]) for name in dtypes)}}};",
            f"static const int READ[INPUTS] = {{{', '.join(read)}}};",
            f"#define EACH(x) {{{', '.join(['x'] * lanes)}}}",
            f"#define COUNTING {{{', '.join(map(str, range(lanes)))}}}",
            PRELUDE,
            *_MORE.get(sinks[0].kind, ()),
            _mix(),
            "static int block(unsigned char *const *in, const double *numbers, const uint32_t *words,",
            "                 uint32_t first, int64_t n, int64_t step_, void *const *sinks, int64_t done) {",
            *(f"  const {_TYPE['h' + name]} *in{place} = (const void *)in[{place}];"
              for place, name in enumerate(dtypes)),
            *_hoisted(program, nodes, sinks),
            *(f"  vf {name} = EACH(0);" for name in naughts),
            *visited(bodies, sinks, apart=turns == PAIRS),
            "  int any = 0;",
            *_ends(sinks),
            *(f"  for (int lane = 0; lane < LANES; lane++) any |= {name}[lane] != 0;" for name in naughts),
            "  return any;",
            "}",
            DRIVER,
        ]
    )  # fmt: skip


def _turns(sinks: Sequence[Sink], dtypes: Sequence[str]) -> tuple[Turn, ...]:
    """How the entries of these inputs are gone through."""
    if sinks[0].kind not in ("store", "window"):
        return ALONE
    halved = all(dtype == "BF16" for dtype in (*dtypes, *(sink.dtype or "BF16" for sink in sinks)))
    return PAIRS if halved else TURNS


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
        if sink.kind == "nonzero" and not kept(sinks):
            yield f"  vi filled{place} = EACH(0);"
        if sink.kind == "low":
            yield f"  const uint32_t high{place} = words[{sink.word}];"
        if sink.kind == "window":
            yield f"  const struct window window{place} = window_of(words + {sink.word});"
            yield f"  vi above{place} = EACH(0);"
            yield f"  uint32_t hits{place}[BLOCK + LANES]; int64_t many{place} = 0;"
    yield from (f"  vu kept{node}[PART / LANES];" for node in kept(sinks))


def _ends(sinks: Sequence[Sink]) -> Iterator[str]:
    """What is added up, and whether all is well, at the end of a block."""
    for place, sink in enumerate(sinks):
        if sink.kind == "store":
            limit = _LIMITS[sink.dtype]
            yield f"  for (int lane = 0; lane < LANES; lane++) any |= top{place}[lane] > {limit}u;"
        if sink.kind == "nonzero" and not kept(sinks):
            yield f"  for (int lane = 0; lane < LANES; lane++) *out{place} -= filled{place}[lane];"
        if sink.kind == "window":
            told = f"&window{place}, above{place}, hits{place}, many{place}"
            yield f"  if (tell(out{place}, n, {told})) return 1;"


def _body(
    program: Program, nodes: Sequence[int], sinks: Sequence[Sink], dtypes: Sequence[str], turn: Turn
) -> Iterator[str]:
    """The statements for the entries of one turn."""
    for node in nodes:
        each = program.nodes[node]
        if each.op == "input":
            read = f"{turn.load}_{dtypes[each.slot]}(in{each.slot} + {turn.at})"
            yield f"    const vf x{node}{turn.name} = {read};"
            naught = _naught(each.slot, turn)
            yield f"    {naught} = NAUGHT({naught}, x{node}{turn.name});"
        elif each.op != "number":
            kind = "i" if each.kind == "b" else each.kind
            yield f"    const v{kind} x{node}{turn.name} = {_expression(program, node, turn)};"
    for node in kept(sinks):
        second = " + 1" if turn.name else ""
        yield f"    kept{node}[at{second}] = (vu){_name(program, node, turn)} & 0x7fffffffu;"
    for place, sink in enumerate(sinks):
        value, other = (_name(program, sink.node, each) for each in (turn, PAIRS[0]))
        if sink.kind == "store":
            yield _stored(sink, place, value, other, turn)
        elif not kept(sinks):
            yield from _into(sink, place, value, program.nodes[sink.node].kind)


def _naught(slot: int, turn: Turn) -> str:
    """What stays zero while entries of this input are finite: half of the inputs share one, which would
    otherwise wait for itself.
    """
    return f"naught{slot % 2}{turn.name}"


def _name(program: Program, node: int, turn: Turn) -> str:
    """Plain numbers are the same for all entries."""
    return f"x{node}" if program.nodes[node].op == "number" else f"x{node}{turn.name}"


def _stored(sink: Sink, place: int, value: str, other: str, turn: Turn) -> str:
    """Entries that alternate are stored in the second turn, with the ``other`` ones."""
    store = f"store_{sink.dtype}(out{place} + {turn.at}, {value});"
    if turn in PAIRS:
        store = f"pairs_{sink.dtype}(out{place} + {turn.at}, {other}, {value});" if turn.name else ""
    return f"    top{place} = LARGER(top{place}, (vu){value} & 0x7fffffffu); {store}"


def _into(sink: Sink, place: int, value: str, kind: str) -> Iterator[str]:
    if sink.kind in ("sum", "columns"):
        yield f"    vd sum{place} = {value};"
    elif sink.kind == "nonzero":
        found = value if kind == "b" else _mask(f"({value} != 0)", kind)
        yield f"    filled{place} += among({found}, left);"
    else:
        yield f"    const vu bits{place} = (vu){value} & 0x7fffffffu;"
        yield f"    {_COUNT[sink.kind].format(place)};"


_MORE = {"sum": (FOLDS,), "window": (WINDOWS,)}
"""Further text that some sinks need."""


def _expression(program: Program, node: int, turn: Turn) -> str:
    each = program.nodes[node]
    names = [_name(program, arg, turn) for arg in each.args]
    wide = "d" if any(program.nodes[arg].kind == "d" for arg in each.args) else "f"
    if each.op in _COMPARE:
        return _mask(f"({names[0]} {_COMPARE[each.op]} {names[1]})", wide)
    if each.op in _INFIX:
        return f"{names[0]} {_INFIX[each.op]} {names[1]}"
    if each.op in _LOGIC:
        return _LOGIC[each.op].format(*names)
    if each.op in ("bernoulli", "uniform"):
        place = f"{_LANES[turn.load]} + (first + (uint32_t){turn.at})"
        return f"{each.op}(draw({place}, words + {each.slot}), words[{each.slot + 2}])"
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
    lines = ["static inline vu draw(vu h, const uint32_t *key) {", "  h += key[0];"]
    for number, (shift, factor) in enumerate(ROUNDS):
        lines.append(f"  h ^= h >> {shift}; h *= 0x{factor:X}u;{' h += key[1];' if number == 1 else ''}")
    return "\n".join([*lines, "  return h ^ (h >> 15);", "}"])


_LANES = {"load": "(vu)COUNTING", "even": "2 * (vu)COUNTING", "odd": "2 * (vu)COUNTING + 1"}
"""Which entries lie in the lanes of a vector."""
_COUNT = {
    "high": "count_high(out{0}, bits{0}, left)",
    "low": "count_low(out{0}, bits{0}, left, high{0})",
}
_TYPE = {
    "BF16": "uint16_t", "F16": "_Float16", "F32": "float",
    "hBF16": "uint16_t", "hF16": "_Float16", "hF32": "float",
}  # fmt: skip
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_LOGIC = {"and": "({0} & {1})", "or": "({0} | {1})", "xor": "({0} ^ {1})", "not": "(~{0})"}
