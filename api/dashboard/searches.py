"""Searches on the page of their job: what was tried as a picture and a table, and a point merged for good."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Response

from api.dashboard.render import number_said
from api.dashboard.visit import Author, Form, PageRoute, see
from api.deps import Id
from api.intake import accept, order_of_point
from db.models.job import Job
from db.models.trial import Trial
from jobs.request import OutputRequest
from jobs.searching import PointRequest

router = APIRouter(route_class=PageRoute, include_in_schema=False)

WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 640.0, 240.0, 70.0, 34.0, 10.0
ROWS = 20


@router.post("/jobs/{job_id}/trials/{number}/merge")
def merge_trial(visit: Author, form: Form, job_id: Id, number: int) -> Response:
    """Orders the merge of one candidate as a new job."""
    visit.caller.require("merges:write")
    repo = str(form.get("repo") or "").strip()
    request = PointRequest(output=OutputRequest(repo=repo or None))
    order = order_of_point(visit.desk, visit.caller, job_id, number, request)
    return see(f"/jobs/{accept(visit.desk, visit.caller, order).job_id}")


def search_view(
    job: Job, asked: Sequence[Trial], workers: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What the page says of a search: its best candidates, a picture of all of them, and who scores them."""
    if job.kind != "search":
        return None
    rows = [row for row in asked if row.told is not None]
    objectives = job.spec["search"]["objectives"]
    names = [" ".join(filter(None, map(each.get, ("set", "metric", "member")))) for each in objectives]
    scored = [row for row in rows if values_of(row)]
    whole = max((row.share for row in scored), default=1.0)
    full = [row for row in scored if row.share == whole]
    front = {each["number"] for each in (job.result or {}).get("front", ())}
    volume = (job.result or {}).get("hypervolume")
    best = ((job.result or {}).get("best") or {}).get("number")
    sent = (job.result or {}).get("as_sent") or {}
    dimensions = list(job.spec["search"]["space"])
    ranked = sorted(full, key=lambda row: (row.number != best, row.number not in front, -values_of(row)[0]))
    return {
        "method": job.spec["search"]["method"],
        "names": names,
        "tried": len(rows),
        "waiting": len(asked) - len(rows),
        "failed": len(rows) - len(scored),
        "reused": sum(bool((row.told or {}).get("reused")) for row in rows),
        "made": made_said(job),
        "early": len(scored) - len(full),
        "ended": (job.result or {}).get("ended"),
        "hypervolume": number_said(volume["value"]) if volume else None,
        "sent": sent_said(sent, (job.result or {}).get("best") or {}),
        "dimensions": dimensions,
        "rows": [_row(row, dimensions, best, front, sent.get("number")) for row in ranked[:ROWS]],
        "left": max(0, len(ranked) - ROWS),
        "workers": workers if len(workers) > 1 else [],
        "picture": picture(full, names, job.spec["search"]["space"], best, front),
    }


def made_said(job: Job) -> str | None:
    """How candidates are made, where that is not in memory, and why."""
    told = (job.result or {}).get("candidates") or (job.plan or {}).get("search", {}).get("candidates") or {}
    return f"candidates are written, one at a time: {told['why']}" if told.get("why") else None


def sent_said(sent: Mapping[str, Any], best: Mapping[str, Any]) -> str | None:
    """What the search has gained over the recipe as it was sent; nothing before it is over."""
    if not sent:
        return None
    if sent["values"] is None:
        return "The recipe as it was sent could not be scored."
    if sent["number"] == best["number"]:
        return "The recipe as it was sent is the best that was found."
    before, after = (", ".join(map(number_said, each["values"])) for each in (sent, best))
    return f"The recipe as it was sent scored {before}, the best that was found {after}."


def values_of(row: Trial) -> list[float]:
    """What a candidate scored; nothing if it failed, or waits."""
    return [float(each) for each in (row.told or {}).get("values") or ()]


def _row(
    row: Trial, dimensions: Sequence[str], best: int | None, front: set[int], sent: int | None
) -> dict[str, Any]:
    found = "best" if row.number == best else "on the front" if row.number in front else ""
    return {
        "number": row.number,
        "mark": ", ".join(filter(None, [found, "as sent" if row.number == sent else ""])),
        "point": [_said(row.point[name]) if row.point else "–" for name in dimensions],
        "values": [number_said(value) for value in values_of(row)],
    }


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "in" if value else "out"
    if isinstance(value, list):
        return ", ".join(_said(each) for each in value)
    return number_said(value) if isinstance(value, int | float) else str(value)


def picture(
    rows: Sequence[Trial],
    names: Sequence[str],
    space: Mapping[str, Any],
    best: int | None,
    front: set[int],
) -> dict[str, Any] | None:
    """Candidates as dots: two objectives against each other; one against the only number that varies; else
    the score against the order in which they were tried.
    """
    numeric = [name for name, each in space.items() if each.get("low") is not None and not each.get("points")]
    if len(space) == len(numeric) == len(names) == 1:
        rows = [row for row in rows if row.point]  # the recipe as it was sent may lie outside the range
    if len(rows) < 2:
        return None
    across, along = "trial", [float(row.number) for row in rows]
    up, heights = names[0], [values_of(row)[0] for row in rows]
    if len(names) > 1:
        across, along = names[0], heights
        up, heights = names[1], [values_of(row)[1] for row in rows]
    elif len(space) == 1 and numeric:
        across, along = numeric[0], [float(row.point[numeric[0]]) for row in rows]
    place = _scale(along, LEFT, WIDTH - 12), _scale(heights, HEIGHT - BELOW, ABOVE)
    dots = [
        {
            "x": place[0](x),
            "y": place[1](y),
            "own": row.number == best or row.number in front,
            "said": f"{across} {number_said(x)}, {up} {number_said(y)}",
        }
        for row, x, y in zip(rows, along, heights, strict=True)
    ]
    curve = sorted((dot["x"], dot["y"]) for dot in dots) if across in numeric else []
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "floor": HEIGHT - BELOW,
        "across": across,
        "up": up,
        "ends": [number_said(each) for each in (min(along), max(along), min(heights), max(heights))],
        "dots": dots,
        "curve": " ".join(f"{x},{y}" for x, y in curve),
    }


def _scale(values: Sequence[float], low: float, high: float) -> Any:
    least, most = min(values), max(values)
    span = (most - least) or 1.0
    return lambda value: round(low + (value - least) / span * (high - low), 2)
