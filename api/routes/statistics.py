"""Statistics of models on data that jobs measured; the next job on the same model and data finds them."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from api.deps import Asked, InDesk, Reader, found
from api.paging import page, start
from api.schemas.common import PageOut, problems
from api.schemas.statistics import StatisticOut, StatisticShortOut
from db import statistics

router = APIRouter(prefix="/v1/statistics", tags=["statistics"], responses=problems())

Digest = Annotated[str, Path(max_length=64)]


@router.get("", response_model=PageOut[StatisticShortOut])
def list_statistics(request: Request, desk: InDesk, caller: Reader, asked: Asked) -> Response:
    """The tenant's statistics, newest first."""
    with desk.read() as session:
        after = start(desk, asked, {})
        rows = statistics.page(session, caller.tenant_id, limit=asked.limit + 1, after=after)

    def shape(row: object) -> object:
        return StatisticShortOut.model_validate(row).model_dump(mode="json")

    return page(desk, request, asked, {}, rows, shape)


@router.get("/{digest}", responses=problems(404))
def get_statistics(desk: InDesk, caller: Reader, digest: Digest) -> StatisticOut:
    """The statistics of one digest, with their manifest."""
    with desk.read() as session:
        row = statistics.get(session, caller.tenant_id, digest)
        return StatisticOut.model_validate(found(row, "statistics", digest))
