"""What the tenant has, and what it may have."""

from fastapi import APIRouter

from api.deps import InDesk, Reader
from api.routes.jobs import MAX_WAIT_SECONDS
from api.schemas.common import problems
from api.schemas.usage import LimitsOut, UsageOut
from db import jobs, tokens

router = APIRouter(prefix="/v1", tags=["usage"], responses=problems())


@router.get("/usage")
def get_usage(desk: InDesk, caller: Reader) -> UsageOut:
    """Jobs of the tenant by state."""
    by_state: dict[str, int] = {}
    with desk.read() as session:
        for (_, state), count in jobs.count_states(session, caller.tenant_id).items():
            by_state[state] = by_state.get(state, 0) + count
    return UsageOut(jobs=by_state, queued=by_state.get("queued", 0))


@router.get("/limits")
def get_limits(desk: InDesk, caller: Reader) -> LimitsOut:
    """The limits that hold for the caller."""
    settings = desk.settings
    with desk.read() as session:
        tenant = tokens.tenant(session, caller.tenant_id)
    own = tenant.max_queued_jobs if tenant else None
    return LimitsOut(
        requests_per_minute=settings.requests_per_minute,
        max_queued_jobs=settings.max_queued_jobs if own is None else own,
        max_body_bytes=settings.max_body_bytes,
        max_dataset_bytes=settings.max_dataset_bytes,
        max_calibration_bytes=settings.max_calibration_bytes,
        plan_timeout_seconds=settings.plan_timeout_seconds,
        max_wait_seconds=MAX_WAIT_SECONDS,
    )
