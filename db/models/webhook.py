"""Where to announce, and every announcement."""

from urllib.parse import urlsplit

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Time


class WebhookEndpoint(Base):
    """A URL that wants events; with ``job_id`` it belongs to that one job and to the jobs retried from it."""

    __tablename__ = "webhook_endpoint"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    url: Mapped[str]
    events: Mapped[list[str]]
    description: Mapped[str | None]
    key_id: Mapped[str]
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    old_key_id: Mapped[str | None]
    old_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    old_secret_until: Mapped[Time | None]
    failing_since: Mapped[Time | None]
    disabled_at: Mapped[Time | None]
    disabled_reason: Mapped[str | None]
    created_at: Mapped[CreatedAt]

    @property
    def receiver(self) -> str:
        """The host that its messages go to, by which they take turns."""
        return (urlsplit(self.url).hostname or "").rstrip(".")


class WebhookDelivery(Base):
    """One message to one endpoint. ``message_id`` stays the same on every try.

    ``state``: ``pending`` (waiting for ``next_attempt_at``), ``delivered``, ``dead``.
    """

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="state"),
        Index("ix_webhook_delivery_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
        Index(
            "ix_webhook_delivery_turn",
            "receiver",
            "next_attempt_at",
            "id",
            postgresql_where=text("state = 'pending'"),
        ),
        Index("ix_webhook_delivery_endpoint", "endpoint_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoint.id", ondelete="CASCADE"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    event_seq: Mapped[int | None]
    message_id: Mapped[str]
    type: Mapped[str]
    body: Mapped[str]
    receiver: Mapped[str] = mapped_column(server_default="")
    state: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[CreatedAt]
    lease_owner: Mapped[str | None]
    lease_until: Mapped[Time | None]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    attempted_at: Mapped[Time | None]
    delivered_at: Mapped[Time | None]
    created_at: Mapped[CreatedAt]
