"""Plots as SVG, readable on light and on dark pages."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """<style>
text{font:13px system-ui,sans-serif;fill:#24292f}.soft{fill:#57606a;font-size:12px}
.axis{stroke:#d0d7de}.mark{stroke:#57606a;stroke-dasharray:4 4}
.c0{fill:#0969da;stroke:#0969da}.c1{fill:#bc4c00;stroke:#bc4c00}.c2{fill:#1a7f37;stroke:#1a7f37}
.c3{fill:#8250df;stroke:#8250df}.c4{fill:#6e7781;stroke:#6e7781}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9198a1}.axis{stroke:#3d444d}
.mark{stroke:#9198a1}.c0{fill:#4493f8;stroke:#4493f8}.c1{fill:#f0883e;stroke:#f0883e}
.c2{fill:#3fb950;stroke:#3fb950}.c3{fill:#ab7df8;stroke:#ab7df8}.c4{fill:#9198a1;stroke:#9198a1}}
</style>"""
LEFT, WIDTH, ROW, TOP, BOTTOM, LEGEND = 210, 760, 20, 46, 40, 200
LETTER = 7.5
"""The width that a letter of a name is given."""


@dataclass(frozen=True)
class Point:
    """A value with its standard error and the number of its colour."""

    value: float
    error: float = 0.0
    colour: int = 0


def dots(title: str, unit: str, rows: Mapping[str, Sequence[Point]], marks: Mapping[str, float]) -> str:
    """One row a name, a dot and a bar of one standard error for each point, dashed lines for ``marks``."""
    height = TOP + ROW * len(rows) + BOTTOM
    left = max(LEFT, 18 + LETTER * max(map(len, rows), default=0))
    ends = [p.value + sign * _finite(p.error) for points in rows.values() for p in points for sign in (-1, 1)]
    low, high = _widened([*ends, *marks.values()])

    def across(value: float) -> float:
        return left + (WIDTH - left - 20) * (value - low) / (high - low)

    body = [_text(8, 18, title)]
    for value in ticks(low, high):
        x = across(value)
        body.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM + 4}"/>')
        body.append(_text(x, height - BOTTOM + 18, f"{value:g}", "soft", "middle"))
    body.append(_text(WIDTH - 20, height - 6, unit, "soft", "end"))
    for name, value in marks.items():
        x = across(value)
        body.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM + 4}"/>')
        body.append(_text(x, TOP - 6, name, "soft", "middle"))
    for place, (name, points) in enumerate(rows.items()):
        y = TOP + ROW * place + ROW / 2
        body.append(_text(left - 10, y + 4, name, "", "end"))
        body += [_dot(across, point, y) for point in points]
    return _svg(WIDTH, height, body, title)


def _dot(across: Callable[[float], float], point: Point, y: float) -> str:
    x, error = across(point.value), _finite(point.error)
    left, right = across(point.value - error), across(point.value + error)
    return (
        f'<line class="c{point.colour}" stroke-width="2" x1="{left:.1f}" x2="{right:.1f}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/><circle class="c{point.colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    )


def plane(title: str, axes: tuple[str, str], groups: Mapping[str, Sequence[tuple[str, Point, Point]]]) -> str:
    """Points in a plane, joined in the order of their group; each has a word, an x and a y with errors."""
    width, height, left, bottom = 760, 460, 70, 60
    points = [each for group in groups.values() for each in group]
    low_x, high_x = _widened([p.value for _, p, _ in points])
    low_y, high_y = _widened([p.value for _, _, p in points])

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (width - left - LEGEND) * (x - low_x) / (high_x - low_x),
            TOP + (height - TOP - bottom) * (1 - (y - low_y) / (high_y - low_y)),
        )

    body = [_text(8, 18, title), _text(width - LEGEND, height - 12, axes[0], "soft", "end")]
    body.append(_text(8, TOP - 8, axes[1], "soft"))
    for value in ticks(low_x, high_x):
        x, _ = at(value, low_y)
        body.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - bottom}"/>')
        body.append(_text(x, height - bottom + 16, f"{value:g}", "soft", "middle"))
    for value in ticks(low_y, high_y):
        _, y = at(low_x, value)
        body.append(f'<line class="axis" x1="{left}" x2="{width - LEGEND}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_text(left - 8, y + 4, f"{value:g}", "soft", "end"))
    for colour, (name, group) in enumerate(groups.items()):
        body += _path(at, colour, group)
        y = TOP + 20 * colour + 10
        body.append(f'<circle class="c{colour}" cx="{width - LEGEND + 24}" cy="{y}" r="5"/>')
        body.append(_text(width - LEGEND + 36, y + 4, name, "soft"))
    return _svg(width, height, body, title)


def _path(
    at: Callable[[float, float], tuple[float, float]],
    colour: int,
    group: Sequence[tuple[str, Point, Point]],
) -> list[str]:
    spots = [at(x.value, y.value) for _, x, y in group]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    made = [f'<polyline class="c{colour}" style="fill:none" stroke-width="1.5" points="{line}"/>']
    for (word, _, _), (x, y) in zip(group, spots, strict=True):
        made.append(f'<circle class="c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        made.append(_text(x + 6, y + (14 if colour % 2 else -5), word, "soft"))
    return made


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between two others.

    >>> ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= 8)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _widened(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, body: Sequence[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *body, "</svg>"]) + "\n"
