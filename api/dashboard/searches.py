"""Searches on the page of their job: what was tried as a picture and a table, and a point merged for good."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Response
from pydantic import ValidationError
from starlette.datastructures import FormData

from api.dashboard.render import bytes_said, number_said
from api.dashboard.visit import Author, Form, PageRoute, ordered
from api.deps import Id, Number
from api.errors import from_validation
from api.intake import order_of_point
from db.models.job import Job
from db.models.trial import Trial
from jobs.request import OutputRequest
from jobs.searching import PointRequest
from search.choice import FrontPoint, names_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)

WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 480.0, 220.0, 70.0, 34.0, 10.0
ROWS = 20
REASONS = 5


@router.post("/jobs/{job_id}/trials/{number}/merge")
async def merge_trial(visit: Author, form: Form, job_id: Id, number: Number) -> Response:
    """Orders the merge of one candidate as a new job."""
    visit.caller.require("merges:write")
    wanted = point_request(form)
    return await ordered(visit, lambda: order_of_point(visit.desk, visit.caller, job_id, number, wanted))


def point_request(form: FormData) -> PointRequest:
    """How a point is to be merged, by the form beside it."""
    repo = str(form.get("repo") or "").strip()
    try:
        return PointRequest(output=OutputRequest(repo=repo or None))
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False), "body") from None


def search_view(
    job: Job,
    asked: Sequence[Trial],
    workers: Sequence[Mapping[str, Any]],
    front_points: Sequence[FrontPoint],
    chosen: int | None,
) -> dict[str, Any]:
    """What the page says of a search: its best candidates, a picture of all of them, and who scores them.
    ``front_points`` are those of its front, ``chosen`` the number of the trial that suits a preference.
    """
    wanted, result = job.spec["search"], job.result or {}
    rows = [row for row in asked if row.told is not None]
    names, dimensions = names_of(wanted["objectives"]), list(wanted["space"])
    scored = [row for row in rows if values_of(row)]
    whole = max((row.share for row in scored), default=1.0)
    full = [row for row in scored if row.share == whole]
    front = {each.number for each in front_points if each.number is not None} if len(names) > 1 else set()
    best, sent = ((result.get(name) or {}).get("number") for name in ("best", "as_sent"))

    def rank(row: Trial) -> tuple[bool, bool, bool, float]:
        return row.number != chosen, row.number != best, row.number not in front, -values_of(row)[0]

    ranked = sorted(full, key=rank)
    return {
        "method": wanted["method"],
        "names": names,
        "tried": len(rows),
        "waiting": len(asked) - len(rows),
        "failed": len(rows) - len(scored),
        "failures": failures_of(rows),
        "reused": sum(bool((row.told or {}).get("reused")) for row in rows),
        "early": len(scored) - len(full),
        "dimensions": dimensions,
        "rows": [_row(row, dimensions, (best, chosen, sent), front) for row in ranked[:ROWS]],
        "left": max(0, len(ranked) - ROWS),
        "workers": workers if len(workers) > 1 else [],
        "picture": picture(
            full, names, wanted["space"], best, front, [each for each in front_points if each.number is None]
        ),
        **_result_said(job.plan, result),
    }


def _result_said(plan: Mapping[str, Any] | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the result of a search says; of one that is not over, how its candidates are made."""
    volume = result.get("hypervolume")
    return {
        "made": candidates_said(plan, result),
        "ended": result.get("ended"),
        "remark": (result.get("notes") or {}).get("surrogate", ""),
        "hypervolume": number_said(volume["value"]) if volume else None,
        "sent": sent_said(result.get("as_sent") or {}, result.get("best") or {}),
    }


def candidates_said(plan: Mapping[str, Any] | None, result: Mapping[str, Any] | None = None) -> str:
    """How the candidates of a search are made, and why, where it is not in memory; nothing of other jobs."""
    told = (result or {}).get("candidates") or ((plan or {}).get("search") or {}).get("candidates")
    if not told:
        return ""
    if not told.get("why"):
        return "Candidates are made and scored in memory; none is written."
    return f"Candidates are written, one at a time: {told['why']}."


def trying_of(plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a plan says of the candidates of a search; nothing of other jobs."""
    told = (plan or {}).get("search")
    if not told:
        return []
    facts = [("Candidates", f"{told['evaluations']:,} at most"), ("Numbers that vary", str(told["numbers"]))]
    made = told["candidates"]
    return facts + ([("Written for each", bytes_said(made["bytes"]))] if made["why"] else [])


def failures_of(rows: Sequence[Trial]) -> list[str]:
    """Why candidates failed, each reason once, with the first that it befell."""
    first: dict[str, int] = {}
    for row in rows:
        if not values_of(row):
            first.setdefault(str((row.told or {}).get("error") or "no reason was kept"), row.number)
    return [f"Trial {number} failed: {why}" for why, number in list(first.items())[:REASONS]]


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
    row: Trial, dimensions: Sequence[str], named: tuple[int | None, int | None, int | None], front: set[int]
) -> dict[str, Any]:
    """``named``: the numbers of the best candidate, of the chosen one, and of the recipe as it was sent."""
    best, chosen, sent = named
    found = "best" if row.number == best else "on the front" if row.number in front else ""
    marks = [
        found,
        "suits the preference" if row.number == chosen else "",
        "as sent" if row.number == sent else "",
    ]
    return {
        "number": row.number,
        "mark": ", ".join(filter(None, marks)),
        "point": point_said(row.point, dimensions),
        "values": [number_said(value) for value in values_of(row)],
    }


def point_said(point: Mapping[str, Any], dimensions: Sequence[str]) -> list[str]:
    """The values of a point in words; of the recipe as it was sent there may be none."""
    return [_said(point[name]) if point else "–" for name in dimensions]


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
    predicted: Sequence[FrontPoint] = (),
) -> dict[str, Any] | None:
    """Candidates, and the points of a predicted front, as dots: two objectives against each other; one
    against the only number that varies; else the score against the order in which they were tried.
    """
    numeric = [name for name, each in space.items() if each.get("low") is not None and not each.get("points")]
    only = numeric[0] if numeric and len(space) == 1 else None
    if only and len(names) == 1:
        rows = [row for row in rows if row.point]  # the recipe as it was sent may lie outside the range
    if len(rows) < 2:
        return None
    (across, along), (up, heights) = _axes(rows, names, only, predicted)
    kinds = ["own" if row.number == best or row.number in front else "" for row in rows]
    kinds += ["predicted"] * (len(along) - len(rows))
    right, above = _scale(along, LEFT, WIDTH - 12), _scale(heights, HEIGHT - BELOW, ABOVE)
    dots = [
        {
            "x": right(x),
            "y": above(y),
            "kind": kind,
            "said": f"{across} {number_said(x)}, {up} {number_said(y)}",
        }
        for kind, x, y in zip(kinds, along, heights, strict=True)
    ]
    curve = sorted((dot["x"], dot["y"]) for dot in dots[: len(rows)]) if across == only else []
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "floor": HEIGHT - BELOW,
        "across": across,
        "up": up,
        "ends": [number_said(each) for each in (min(along), max(along), min(heights), max(heights))],
        "dots": dots,
        "predicted": len(along) - len(rows),
        "curve": " ".join(f"{x},{y}" for x, y in curve),
    }


Axis = tuple[str, list[float]]
"""What is drawn along it, and where each dot lies."""


def _axes(
    rows: Sequence[Trial], names: Sequence[str], only: str | None, predicted: Sequence[FrontPoint]
) -> tuple[Axis, Axis]:
    """Across and up; ``only`` is the number that varies where there is no other dimension."""
    values = [*map(values_of, rows), *(each.values for each in predicted)]
    scores = [(name, [each[at] for each in values]) for at, name in enumerate(names[:2])]
    if len(names) > 1:
        return scores[0], scores[1]
    if only:
        points = [*(row.point for row in rows), *(each.point for each in predicted)]
        return (only, [float(point[only]) for point in points]), scores[0]
    return ("trial", [float(row.number) for row in rows]), (names[0], scores[0][1][: len(rows)])


def _scale(values: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    least, most = min(values), max(values)
    span = (most - least) or 1.0
    return lambda value: round(low + (value - least) / span * (high - low), 2)
