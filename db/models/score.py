"""Scores by what they depend on, so that no model is scored twice on the same set."""

from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt


class KnownScore(Base):
    """What one model got on one set, item by item. ``key`` covers model bytes, items, settings and scorer
    (``scoring.digest``). ``last_used_at`` may be up to a day behind.
    """

    __tablename__ = "known_score"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    scores: Mapped[list[dict[str, Any]]]
    model_sha256: Mapped[str | None]
    task_sha256: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[CreatedAt]
