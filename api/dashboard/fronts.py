"""Fronts on the page of their search: predicted points, which one suits a preference, and any as a merge."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from api.dashboard.render import number_said
from api.dashboard.searches import point_request, point_said
from api.dashboard.visit import Author, Form, PageRoute, ordered
from api.deps import Id, Number
from api.errors import Problem
from api.fronts import order_of_place, picked
from jobs.fronts import Front
from search.choice import Among, Chosen, FrontPoint

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ROWS = 20


@router.post("/jobs/{job_id}/front/{place}/merge")
async def merge_point(visit: Author, form: Form, job_id: Id, place: Number) -> Response:
    """Orders the merge of one point of a front as a new job."""
    visit.caller.require("merges:write")
    wanted = point_request(form)
    return await ordered(visit, lambda: order_of_place(visit.desk, visit.caller, job_id, place, wanted))


def front_view(front: Front, say: Sequence[str], among: Among) -> dict[str, Any]:
    """What the page says of a front: its predicted points, the form for a preference, and the point that
    suits ``say``, a number an objective, or what is wrong with that.
    """
    predicted = [each for each in front.points if each.number is None]
    chosen, wrong = _asked(front, say, among)
    ranked = sorted(predicted, key=lambda each: chosen is None or each.place != chosen.at.place)
    dimensions = list(front.order.search.space)
    names = front.names
    says = [say[at] if at < len(say) else "" for at in range(len(names))]
    return {
        "asks": list(zip(names, says, strict=True)) if len(names) > 1 else [],
        "among": among,
        "wrong": wrong,
        "chosen": None if chosen is None else _chosen(chosen),
        "predicted": predicted,
        "rows": [_row(each, dimensions, chosen) for each in ranked[:ROWS]],
        "left": max(0, len(predicted) - ROWS),
    }


def _asked(front: Front, say: Sequence[str], among: Among) -> tuple[Chosen | None, str]:
    if not any(each.strip() for each in say):
        return None, ""
    try:
        return picked(front, ",".join(each.strip() or "0" for each in say), among), ""
    except Problem as problem:
        return None, str(problem.detail)


def _chosen(chosen: Chosen) -> dict[str, Any]:
    at = chosen.at
    name = f"predicted point {at.place}" if at.number is None else f"trial {at.number}"
    return {"place": at.place, "number": at.number, "name": name, "why": chosen.why}


def _row(each: FrontPoint, dimensions: Sequence[str], chosen: Chosen | None) -> dict[str, Any]:
    return {
        "place": each.place,
        "suits": chosen is not None and chosen.at.place == each.place,
        "point": point_said(each.point, dimensions),
        "values": [number_said(value) for value in each.values],
    }
