"""Plans: what a recipe would do, before anything is recorded or downloaded."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from api.deps import InDesk, Reader
from api.intake import Order, patiently, preview
from api.routes.jobs import order_body, order_of_request
from api.schemas.common import problems
from api.schemas.jobs import PlanOut

router = APIRouter(prefix="/v1/plans", tags=["plans"], responses=problems(404, 413, 415, 504))


@router.post("", openapi_extra=order_body())
async def make_plan(
    desk: InDesk, caller: Reader, sent: Annotated[tuple[Order, Any], Depends(order_of_request)]
) -> PlanOut:
    """Pins every model, reads configurations and headers only, and says what would happen and at what cost;
    what `POST /v1/jobs` would refuse is refused here too.

    Asynchronous because planning has threads of its own.
    """
    order, _ = sent
    planned = await patiently(desk, lambda: preview(desk, caller, order))
    return PlanOut(
        recipe=planned.subject,
        plan=planned.summary,
        queue=planned.queue,
        findings=[each.as_dict() for each in planned.findings],
        translation=list(order.notes),
    )
