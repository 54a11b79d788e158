"""The survey of a merge as one HTML page that needs nothing else: tables, and plots as inline SVG.

Loads no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import floor, log10
from typing import Any

from jinja2 import Environment, StrictUndefined

WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
COLOURS = 8


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


def render_page(survey: Mapping[str, Any], *, title: str) -> str:
    """The page; ``survey`` is what ``merge.survey.summary.summarise`` gave."""
    groups = [{**group, "charts": _charts(group)} for group in survey["groups"]]
    size = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    page: str = _template().render(title=title, survey=survey, groups=groups, size=size)
    return page


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": _percent, "number": _number, "tint": _tint}
    return environment.from_string(files("merge.survey").joinpath("page.html").read_text(encoding="utf-8"))


def _charts(group: Mapping[str, Any]) -> list[Chart]:
    layers = group["layers"]
    if len(layers) < 2:
        return []
    names = group["models"]
    norms = {name: [layer["norms"][name] for layer in layers] for name in names}
    norms["merged"] = [layer["merged_norm"] for layer in layers]
    conflicts = {"sign conflict": [layer["sign_conflict"] or 0.0 for layer in layers]}
    changed = {"changed": [layer["changed"] or 0.0 for layer in layers]}
    followed = {name: [layer["followed"][name] or 0.0 for layer in layers] for name in names}
    at = [layer["layer"] for layer in layers]
    charts = [_chart("Norms of the task vectors", "Euclidean, by layer", at, norms, None)]
    left = [1.0 if layer["held_back"] is None else layer["held_back"] for layer in layers]
    if any(share != 1.0 for share in left):
        about = "norm of the change after the adjusting steps (such as AIM), as a share of that before them"
        charts.append(_chart("Held back", about, at, {"left of the change": left}, None))
    if len(names) > 1:
        about = "share of the entries at which the models pull in opposite directions"
        charts.append(_chart("Sign conflicts", about, at, conflicts, 1.0))
    about = "share of a model's changed entries at which the result moved its way"
    charts.append(_chart("Followed", about, at, followed, 1.0))
    charts.append(_chart("Changed", "share of the entries that differ from the base", at, changed, 1.0))
    return charts


def _chart(
    title: str, about: str, layers: Sequence[int], series: Mapping[str, Sequence[float]], top: float | None
) -> Chart:
    most = top or _round_up(max((value for values in series.values() for value in values), default=0.0))
    span = max(layers[-1] - layers[0], 1)

    def x(layer: int) -> float:
        return round(LEFT + (layer - layers[0]) / span * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / most * (HEIGHT - TOP - BOTTOM), 1)

    lines = tuple(
        Line(name, place % COLOURS, " ".join(f"{x(at)},{y(v)}" for at, v in zip(layers, values, strict=True)))
        for place, (name, values) in enumerate(series.items())
    )
    step = max(1, round(span / 8))
    x_ticks = tuple((x(layer), str(layer)) for layer in layers if (layer - layers[0]) % step == 0)
    y_ticks = tuple((y(most * part / 4), _number(most * part / 4)) for part in range(5))
    return Chart(title, about, lines, x_ticks, y_ticks)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten, so that quarters of the axis are short numbers."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** floor(log10(value))
    return next(step * unit for step in (1, 2, 4, 8, 10) if step * unit >= value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _tint(value: float | None) -> str:
    """How strongly a cell of the cosine matrix is coloured: percent of the full colour."""
    return "0%" if value is None else f"{round(abs(value) * 60)}%"
