"""Answers kept so that a repeated request gets the same one."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json


class IdempotencyKey(Base):
    """Written in the transaction of the job itself, so it exists exactly when the job does."""

    __tablename__ = "idempotency_key"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    status: Mapped[int]
    body: Mapped[Json]
    created_at: Mapped[CreatedAt] = mapped_column(index=True)
