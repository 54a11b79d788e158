"""Answers kept so that a repeated request gets the same one."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json, Time


class IdempotencyKey(Base):
    """A key and its answer, written in the transaction of what it answers.

    Until then ``owner`` holds the key, and no longer than ``reserved_until``; ``status`` and ``body`` are
    empty.
    """

    __tablename__ = "idempotency_key"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    status: Mapped[int]
    body: Mapped[Json]
    owner: Mapped[str | None]
    reserved_until: Mapped[Time | None]
    created_at: Mapped[CreatedAt] = mapped_column(index=True)
