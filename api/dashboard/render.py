"""Templates, and the few ways in which values become words."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

HERE = Path(__file__).parent
STATIC = HERE / "static"
SHORT = 13
"""Of ``@`` and a commit, what is shown."""
_COMMIT = re.compile(r"@[0-9a-f]{40}(?![0-9a-f])")
_TICKS = re.compile("``?")
CODE = Markup("<code>{}</code>")


def bytes_said(count: float | None) -> str:
    """A number of bytes such as ``1.2 GB``."""
    if count is None:
        return "–"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def seconds_said(seconds: float | None) -> str:
    """A duration such as ``1 h 5 min``, ``2 min 3 s`` or ``0.4 s``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number_said(value: float) -> str:
    """A score with four digits that mean something."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.3e}"


def stamp(moment: datetime) -> str:
    """RFC 3339, UTC."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def moment_said(moment: datetime) -> str:
    """Day and minute, UTC."""
    return f"{moment.astimezone(UTC):%-d %b %H:%M}"


def clock_said(moment: datetime) -> str:
    """Time of day, UTC."""
    return f"{moment.astimezone(UTC):%H:%M:%S}"


def first_sentence(text: str) -> str:
    """The text up to its first full stop."""
    head, stop, _ = " ".join(text.split()).partition(". ")
    return head + ("." if stop else "")


def short_name(name: str) -> str:
    """A model's name with the commit it is pinned to cut as Git does."""
    return _COMMIT.sub(lambda found: found[0][:SHORT], name)


def coded(text: str) -> Markup:
    """Words with what stands between backticks, one or two, as code."""
    parts = enumerate(_TICKS.split(text))
    return Markup("").join(CODE.format(part) if number % 2 else part for number, part in parts)


def span_said(ends: Sequence[int | None]) -> str:
    """How many sources a method takes."""
    least, most = ends
    if most is None:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def _version() -> str:
    try:
        return version("mergery")
    except PackageNotFoundError:
        return ""


TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=select_autoescape(default=True, default_for_string=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "bytes": bytes_said,
    "stamp": stamp,
    "moment": moment_said,
    "clock": clock_said,
    "first_sentence": first_sentence,
    "short": short_name,
    "coded": coded,
    "span": span_said,
}
TEMPLATES.globals |= {"version": _version(), "csrf": "", "here": "", "description": None}


def text(template: str, **values: Any) -> str:
    """A template filled in."""
    return TEMPLATES.get_template(template).render(**values)


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A template as an answer that no cache keeps."""
    return HTMLResponse(text(template, **values), status, {"Cache-Control": "no-store"})
