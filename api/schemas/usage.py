"""Bodies of limits, usage and health."""

from typing import Literal

from api.schemas.common import Out


class UsageOut(Out):
    """What the tenant has now."""

    jobs: dict[str, int]
    queued: int


class LimitsOut(Out):
    """What the tenant may do."""

    requests_per_minute: int
    max_queued_jobs: int
    max_body_bytes: int
    max_dataset_bytes: int
    max_calibration_bytes: int
    plan_timeout_seconds: float
    max_wait_seconds: int


class LiveOut(Out):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadyOut(Out):
    """What is needed is there."""

    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"
    schema_revision: str
    broker: Literal["ok", "none"]
