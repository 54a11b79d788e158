"""In which order a loop visits its entries, which its sinks decide."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merge.running.fused.source import Sink

Bodies = Sequence[Sequence[str]]
"""Statements for some entries, and for those after them where two vectors take turns."""
_SHORT = 60
"""Statements of a body that may be written out several times."""


def visited(bodies: Bodies, sinks: Sequence["Sink"], *, apart: bool) -> Iterator[str]:
    """The loop over these bodies; ``apart`` tells that the entries of two vectors alternate."""
    kind = sinks[0].kind
    if kind == "sum":
        yield from _folding(bodies[0], sinks)
    elif kind == "columns":
        yield from _down(bodies[0], sinks)
    elif kind == "window":
        yield from _looking(bodies, sinks, apart)
    else:
        yield from _plain(bodies)


def kept(sinks: Sequence["Sink"]) -> list[int]:
    """The nodes of which some entries at a time are kept, to be looked at again and again."""
    return list(dict.fromkeys(sink.node for sink in sinks if sinks[0].kind == "window"))


def _plain(bodies: Bodies) -> Iterator[str]:
    """Statement by statement for two vectors in turns: while one waits for a result, the other goes on."""
    yield f"  for (int64_t i = 0; i < n; i += {len(bodies)} * LANES) {{"
    yield "    const int64_t left = n - i, ib = i + LANES; (void)left;"
    for together in zip(*bodies, strict=True):
        yield from together
    yield "  }"


def _looking(bodies: Bodies, sinks: Sequence["Sink"], apart: bool) -> Iterator[str]:
    """Some entries at a time, what is looked at is kept for all windows, each of which is a short loop."""
    yield "  for (int64_t from = 0; from < n; from += PART) {"
    yield "    const int64_t part = n - from < PART ? n - from : PART;"
    yield "    for (int64_t i = from, at = 0; i < from + part; i += 2 * LANES, at += 2) {"
    yield "    const int64_t ib = i + LANES;"
    for together in zip(*bodies, strict=True):
        yield from together
    yield "    }"
    if apart:
        yield from (f"    close_up(kept{node}, part);" for node in kept(sinks))
    for place, sink in enumerate(sinks):
        if sink.kind == "nonzero":
            yield f"    count_filled(out{place}, kept{sink.node}, part);"
        else:
            told = f"hits{place} + many{place}, kept{sink.node}, part, &window{place}, &above{place}"
            yield f"    many{place} += count_window({told});"
    yield "  }"


def _folding(body: Sequence[str], sinks: Sequence["Sink"]) -> Iterator[str]:
    """A piece of n entries is folded in halves: entry i meets i + half, and so on. The entries are visited in
    an order in which every pair meets while it is at hand, the first levels in registers. Where an entry has
    no partner it meets -0.0, which changes nothing.
    """
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


def _down(body: Sequence[str], sinks: Sequence["Sink"]) -> Iterator[str]:
    """A piece of whole rows is folded in halves: row i meets row i + half, and so on; the first two levels in
    registers, where four rows meet. A line of the cache is used up before the next. What lies beyond the last
    column is that of the next row, and left out in the end.
    """
    places = range(len(sinks))
    yield "  const int64_t columns = columns0, rows = n / columns;"
    yield "  const int64_t half = (rows + 1) / 2, quarter = (half + 1) / 2;"
    yield f"  vd met[BLOCK / (4 * LEAST_COLUMNS)][4][{len(sinks)}];"
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
