"""For whoever runs the service: is it alive, ready, and well; and what its problem codes mean."""

from typing import Any

import redis
import structlog
from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from api.deps import Id, InDesk, found
from api.errors import Problem, explanation
from api.schemas.common import PROBLEM_CONTENT
from api.schemas.usage import LiveOut, ReadyOut
from migrations import run as migrations

log = structlog.get_logger("api.health")

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready", "content": PROBLEM_CONTENT}}

router = APIRouter(tags=["health"])


@router.get("/livez")
def livez() -> LiveOut:
    """The process answers."""
    return LiveOut()


@router.get("/readyz", responses=NOT_READY)
def readyz(desk: InDesk) -> ReadyOut:
    """The database answers and has the schema of this code, and the broker answers within a second."""
    head = migrations.head()
    try:
        revision = migrations.current(desk.settings.database_url or "")
    except Exception as error:
        log.warning("database_away", error=str(error))
        raise Problem("not_ready", "the database does not answer") from None
    if revision != head:
        raise Problem("not_ready", f"the database is at revision {revision}, this code needs {head}")
    try:
        desk.limiter.ping()
    except redis.RedisError as error:
        log.warning("broker_away", error=str(error))
        raise Problem("not_ready", "the broker does not answer") from None
    return ReadyOut(schema_revision=head, broker="ok" if desk.limiter.broker else "none")


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(desk: InDesk) -> Response:
    """Numbers for Prometheus."""
    if not desk.settings.metrics_enabled:
        raise Problem("not_found", "metrics are switched off")
    return Response(desk.metrics.text(), media_type=METRICS_TYPE)


@router.get("/problems/{code}", include_in_schema=False)
def explain(code: Id) -> Response:
    """The page behind a problem's ``type``."""
    return PlainTextResponse(found(explanation(code), "problem code", code))
