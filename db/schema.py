"""All tables at once: importing this module registers every model."""

from sqlalchemy import MetaData

from db.models import (
    artifact,
    evaluation,
    front,
    idempotency,
    job,
    removal,
    report,
    score,
    statistic,
    tenant,
    trial,
    webhook,
)
from db.models.base import Base

MODULES = (
    artifact,
    evaluation,
    front,
    idempotency,
    job,
    removal,
    report,
    score,
    statistic,
    tenant,
    trial,
    webhook,
)


def metadata() -> MetaData:
    """The metadata that migrations must agree with."""
    return Base.metadata
