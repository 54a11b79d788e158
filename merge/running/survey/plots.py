"""Plots as inline SVG: curves over the layers, and maps of parts by layers. Pure; loads no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
COLOURS = 8
ROW, LETTER, LONGEST_LABEL = 16, 6.4, 44
DEEPEST = 90
"""Percent of the full colour that the strongest cell of a map has."""

Scale = Callable[[float], float]
"""From a value to its share (0 to 1) of the axis or of the colour."""


@dataclass(frozen=True)
class Line:
    """One curve: ``points`` in pixels, as SVG wants them."""

    name: str
    colour: int
    points: str


@dataclass(frozen=True)
class Chart:
    """Curves over the layers with their axes; ticks are (pixel, text)."""

    title: str
    about: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Cell:
    """One square of a map, in pixels; ``tint`` is percent of the full colour, ``said`` what it stands for."""

    x: float
    y: float
    tint: int
    said: str


@dataclass(frozen=True)
class HeatMap:
    """Parts (rows) by layers (columns); rows and ticks are (pixel, text), ``key`` is (percent, text)."""

    title: str
    about: str
    left: float
    height: float
    cell_width: float
    cells: tuple[Cell, ...]
    rows: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    key: tuple[tuple[int, str], ...]


def chart(
    title: str,
    about: str,
    layers: Sequence[int],
    series: Mapping[str, Sequence[float]],
    top: float | None = None,
    *,
    log: bool = False,
) -> Chart:
    """Curves of ``series`` (by name, a value a layer) from zero to ``top``, or on a logarithmic axis."""
    every = [value for values in series.values() for value in values]
    share, ticks = _logarithmic(every) if log else _from_zero(top or _round_up(max(every, default=0.0)))
    span = max(layers[-1] - layers[0], 1)

    def x(layer: int) -> float:
        return round(LEFT + (layer - layers[0]) / span * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - share(value) * (HEIGHT - TOP - BOTTOM), 1)

    lines = tuple(
        Line(name, place % COLOURS, " ".join(f"{x(at)},{y(v)}" for at, v in zip(layers, values, strict=True)))
        for place, (name, values) in enumerate(series.items())
    )
    x_ticks = tuple((x(layer), str(layer)) for layer in _some(layers, 8))
    return Chart(title, about, lines, x_ticks, tuple((y(value), number(value)) for value in ticks))


def heat_map(
    title: str,
    about: str,
    values: Mapping[tuple[str, int], float],
    *,
    scale: tuple[Scale, Sequence[float]],
    say: Callable[[float], str],
) -> HeatMap:
    """A map of ``values`` by (part, layer). ``scale`` gives the share of colour of a value, and the values to
    show in the key.
    """
    share, shown = scale
    parts = list(dict.fromkeys(part for part, _ in values))
    layers = sorted({layer for _, layer in values})
    labels = {part: _shortened(part) for part in parts}
    left = round(max(len(label) for label in labels.values()) * LETTER + 12, 1)
    width = round((WIDTH - left - RIGHT) / len(layers), 3)
    places = {layer: round(left + at * width, 2) for at, layer in enumerate(layers)}
    rows = {part: float(TOP + at * ROW) for at, part in enumerate(parts)}

    def tint(value: float) -> int:
        return round(DEEPEST * min(max(share(value), 0.0), 1.0))

    cells = tuple(
        Cell(places[layer], rows[part], tint(value), f"layer {layer}, {part}: {say(value)}")
        for (part, layer), value in values.items()
    )
    return HeatMap(
        title,
        about,
        left,
        TOP + ROW * len(parts) + BOTTOM,
        width,
        cells,
        tuple((y + ROW - 4, labels[part]) for part, y in rows.items()),
        tuple((round(places[layer] + width / 2, 1), str(layer)) for layer in _some(layers, 16)),
        tuple((tint(value), say(value)) for value in shown),
    )


def taken_away() -> tuple[Scale, Sequence[float]]:
    """Colours of shares that are left: none for all of it, the deepest for nothing."""
    return (lambda left: 1 - left), (1.0, 0.75, 0.5, 0.25, 0.0)


def by_magnitude(values: Iterable[float]) -> tuple[Scale, Sequence[float]]:
    """Colours of magnitudes, on a logarithmic scale from the least to the greatest."""
    known = sorted(value for value in values if value > 0)
    if not known or known[0] == known[-1]:
        return (lambda value: 0.5 if value > 0 else 0.0), known[:1]
    low, high = log10(known[0]), log10(known[-1])

    def share(value: float) -> float:
        return 0.0 if value <= 0 else 0.05 + 0.95 * (log10(value) - low) / (high - low)

    return share, [10 ** (low + (high - low) * part / 4) for part in range(5)]


def number(value: float | None) -> str:
    """Three digits that mean something."""
    return "–" if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share as percent."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _from_zero(most: float) -> tuple[Scale, list[float]]:
    return (lambda value: value / most), [most * part / 4 for part in range(5)]


def _logarithmic(values: Sequence[float]) -> tuple[Scale, list[float]]:
    """Whole powers of ten, at most six of them marked; what is zero lies at the bottom."""
    known = [value for value in values if value > 0]
    low, high = floor(log10(min(known, default=1.0))), ceil(log10(max(known, default=1.0)))
    high = max(high, low + 1)
    step = ceil((high - low) / 5)

    def share(value: float) -> float:
        return 0.0 if value <= 0 else (log10(value) - low) / (high - low)

    return share, [10.0**power for power in range(low, high + 1, step)]


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten, so that quarters of the axis are short numbers."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** floor(log10(value))
    return next(step * unit for step in (1, 2, 4, 8, 10) if step * unit >= value)


def _some(layers: Sequence[int], most: int) -> list[int]:
    step = max(1, round(max(layers[-1] - layers[0], 1) / most))
    return [layer for layer in layers if (layer - layers[0]) % step == 0]


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}"
