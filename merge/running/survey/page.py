"""The survey of a merge as one HTML page that needs nothing else: tables, and plots as inline SVG.

Loads no torch.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from math import sqrt
from typing import Any

from jinja2 import (
    BytecodeCache,
    Environment,
    FileSystemBytecodeCache,
    PackageLoader,
    StrictUndefined,
    Template,
)

from merge.running.fused.compiler import NotBuilt, kernel_folder
from merge.running.survey.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    ROW,
    WIDTH,
    Chart,
    HeatMap,
    by_magnitude,
    chart,
    heat_map,
    number,
    percent,
    taken_away,
)
from merge.running.survey.spots import labels_of

KINDS_SAID = {
    "mean_abs_input": "mean magnitude of the input channels",
    "input_second_moment": "mean square of the input channels",
    "gram": "mean square of the input channels (the diagonal of the Gram matrix)",
    "fisher": "diagonal Fisher information of the weights",
    "fisher_argmax": "diagonal Fisher information of the weights, of the likeliest labels",
    "fisher_exact": "exact diagonal Fisher information of the weights",
    "grad_weight": "(gradient x weight)² of the weights",
}
QUANTILES = {"low": "10 %", "median": "median", "mean": "mean", "high": "90 %", "most": "greatest"}


def render_page(survey: Mapping[str, Any], *, title: str) -> str:
    """The page; ``survey`` is what ``merge.running.survey.summary.summarise`` gave, with ``saliency`` where
    models were measured on data.
    """
    groups = [
        {**group, "charts": _charts(group), "maps": _maps(group), "parts": _parts(group)}
        for group in survey["groups"]
    ]
    saliency = [_measured(each) for each in survey.get("saliency", ())]
    size = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "bottom": BOTTOM, "row": ROW}
    return _template().render(title=title, survey=survey, groups=groups, saliency=saliency, size=size)


@cache
def _template() -> Template:
    """Made once for all merges where that can be kept: it takes longer than the rest of the page."""
    try:
        folder = kernel_folder()
        if folder is not None:
            return _from_file(FileSystemBytecodeCache(str(folder)))
    except (OSError, NotBuilt):
        pass
    return _from_file(None)


def _from_file(kept: BytecodeCache | None) -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=PackageLoader("merge.running.survey", ""), bytecode_cache=kept,
    )  # fmt: skip
    environment.filters |= {"share": percent, "number": number, "tint": _tint}
    return environment.get_template("page.html")


def _charts(group: Mapping[str, Any]) -> list[Chart]:
    layers = group["layers"]
    if len(layers) < 2:
        return []
    names = group["models"]
    norms = {name: [layer["norms"][name] for layer in layers] for name in names}
    norms["the result"] = [layer["merged_norm"] for layer in layers]
    conflicts = {"sign conflict": [layer["sign_conflict"] or 0.0 for layer in layers]}
    changed = {"changed": [layer["changed"] or 0.0 for layer in layers]}
    followed = {name: [layer["followed"][name] or 0.0 for layer in layers] for name in names}
    at = [layer["layer"] for layer in layers]
    charts = [chart("Norms of the task vectors", "Euclidean, by layer", at, norms)]
    left = [1.0 if layer["held_back"] is None else layer["held_back"] for layer in layers]
    if any(share != 1.0 for share in left):
        about = "norm of the change after the adjusting steps (such as AIM), as a share of that before them"
        charts.append(chart("Held back", about, at, {"left of the change": left}))
    if len(names) > 1:
        about = "share of the entries at which the models pull in opposite directions"
        charts.append(chart("Sign conflicts", about, at, conflicts, 1.0))
    about = "share of a model's changed entries at which the result moved its way"
    charts.append(chart("Followed", about, at, followed, 1.0))
    charts.append(chart("Changed", "share of the entries that differ from the base", at, changed, 1.0))
    return charts


def _maps(group: Mapping[str, Any]) -> list[HeatMap]:
    """What was left of the changes, part by part and layer by layer."""
    cells = group.get("cells", ())
    labels = labels_of(each["tower"] for each in cells)
    found = []
    for key, title, about in (
        ("held_back", "Held back, part by part", "what the adjusting steps left of the merged change: norm"),
        ("prepared_all", "Trimmed, part by part", "what the preparing steps left of the task vectors: norm"),
    ):
        shares = {
            (labels[each["tower"]] + each["part"], each["layer"]): each[key]
            for each in cells
            if each[key] is not None
        }
        if any(share != 1.0 for share in shares.values()):
            said = f"{about} after, as a share of that before; the deeper the colour, the less is left"
            found.append(heat_map(title, said, shares, scale=taken_away(), say=percent))
    return found


def _parts(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells of all layers together, by part; nothing where no adjusting step did anything."""
    cells = group.get("cells", ())
    if all(each["held_back"] in (1.0, None) for each in cells):
        return []
    labels = labels_of(each["tower"] for each in cells)
    rows: dict[str, dict[str, Any]] = {}
    for each in cells:
        name = labels[each["tower"]] + each["part"]
        row = rows.setdefault(name, {"name": name, "class": each["class"], "before": 0.0, "after": 0.0})
        row["before"] += each["merged_norm_before"] ** 2
        row["after"] += each["merged_norm"] ** 2
    for row in rows.values():
        row["before"], row["after"] = sqrt(row["before"]), sqrt(row["after"])
        row["left"] = row["after"] / row["before"] if row["before"] else None
    return list(rows.values())


def _measured(told: Mapping[str, Any]) -> dict[str, Any]:
    """The saliency of one model by one kind of statistic: a map of the means, and curves of quantiles."""
    labels = labels_of(each["tower"] for each in told["cells"] if each["layer"] is not None)
    cells = [{**each, "name": labels.get(each["tower"], "") + _named(each)} for each in told["cells"]]
    means = {(each["name"], each["layer"]): each["mean"] for each in cells if each["layer"] is not None}
    said = KINDS_SAID.get(told["kind"], told["kind"])
    maps, charts = [], []
    if means:
        scale = by_magnitude(means.values())
        about = f"{said}: means, by part and layer; the deeper the colour, the more active"
        maps.append(heat_map("Part by part", about, means, scale=scale, say=number))
    curves: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in told["layers"]:
        curves.setdefault((row["tower"], row["class"]), []).append(row)
    for (tower, role), rows in curves.items():
        if len(rows) > 1:
            series = {name: [row[key] for row in rows] for key, name in QUANTILES.items()}
            at = [row["layer"] for row in rows]
            title = f"By layer: {labels[tower]}class {role}"
            charts.append(chart(title, f"{said}, by layer; powers of ten", at, series, log=True))
    return {**told, "said": said, "maps": maps, "charts": charts, "rows": _by_part(cells)}


def _named(cell: Mapping[str, Any]) -> str:
    """A part with those that have the same inputs: their last names."""
    last = [name.rpartition(".")[2] for name in cell["also"]]
    return ", ".join([cell["part"], *last])


def _by_part(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells of all layers together: the mean of their numbers, the greatest of the greatest."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for each in cells:
        rows.setdefault(each["name"], []).append(each)
    return [
        {"name": name, "class": of[0]["class"], "most": max(each["most"] for each in of)}
        | {key: sum(each[key] for each in of) / len(of) for key in ("low", "median", "mean", "high")}
        for name, of in rows.items()
    ]


def _tint(value: float | None) -> str:
    """How strongly a cell of the cosine matrix is coloured: percent of the full colour."""
    return "0%" if value is None else f"{round(abs(value) * 60)}%"
