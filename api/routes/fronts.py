"""The front that a search has found: look at it, ask which point suits, and merge any of them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.bodies import StrictRoute
from api.deps import JSON, Id, IdempotencyHeader, InDesk, Number, Reader, Writer
from api.fronts import front_for, order_of_place, picked
from api.intake import placed
from api.schemas.common import problems
from api.schemas.fronts import ChosenOut, FrontOut, FrontPointOut, HypervolumeOut, ObjectiveOut
from api.schemas.jobs import JobOut
from jobs.fronts import Front
from jobs.searching import PointRequest
from search.choice import Among, Chosen, FrontPoint

router = APIRouter(prefix="/v1/jobs/{job_id}/front", tags=["jobs"], route_class=StrictRoute)


@router.get("", responses=problems(404, 409))
def get_front(
    desk: InDesk,
    caller: Reader,
    job_id: Id,
    preference: Annotated[
        str | None,
        Query(
            max_length=256,
            description="One number an objective, such as `2,1`: says which point suits (`chosen`)",
        ),
    ] = None,
    among: Annotated[Among, Query(description="Which points a preference chooses from")] = "measured",
) -> FrontOut:
    """The front that a search has measured and predicted, and which of its points suits a preference."""
    front = front_for(desk, caller, job_id)
    chosen = None if preference is None else picked(front, preference, among)
    return FrontOut(
        objectives=[ObjectiveOut.model_validate(each) for each in front.order.search.objectives],
        data=[FrontPointOut(**_point(front, each)) for each in front.points],
        measured_total=front.measured_total,
        hypervolume=HypervolumeOut(**front.hypervolume) if front.hypervolume else None,
        chosen=None if chosen is None else _chosen(front, chosen),
    )


@router.post(
    "/{place}/merge",
    status_code=202,
    response_model=JobOut,
    responses=problems(404, 409, 413, 415),
    dependencies=[JSON],
)
async def merge_point(
    request: Request,
    desk: InDesk,
    caller: Writer,
    job_id: Id,
    place: Number,
    body: PointRequest,
    key: IdempotencyHeader = None,
) -> Response:
    """A merge job for one point of a front, measured or predicted, each model pinned as the search had it."""
    asked = body.model_dump(mode="json")
    accepted = await placed(
        request, desk, caller, lambda: order_of_place(desk, caller, job_id, place, body), asked, key
    )
    return accepted.answer()


def _point(front: Front, point: FrontPoint) -> dict[str, Any]:
    return {
        "place": point.place,
        "kind": point.kind,
        "number": point.number,
        "point": point.point,
        "values": point.values,
        "recipe": front.recipe_at(point.point),
    }


def _chosen(front: Front, chosen: Chosen) -> ChosenOut:
    return ChosenOut(
        **_point(front, chosen.at),
        among=chosen.among,
        preference=list(chosen.preference),
        scaled=list(chosen.scaled),
        score=chosen.score,
        why=chosen.why,
    )
