"""A job, the models it reads and everything that happened to it."""

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json, OrderedJson, Time

STATES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled", "expired")
_LISTED = ", ".join(f"'{state}'" for state in STATES)


class Job(Base):
    """The truth about one job; the broker's message is only a hint that this row is ready.

    A trigger refuses illegal state changes (SQLSTATE 23514) and notifies channel ``mergery_job`` with the id.
    """

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(f"state IN ({_LISTED})", name="state"),
        CheckConstraint("(state IN ('running', 'cancelling')) = (lease_owner IS NOT NULL)", name="lease"),
        CheckConstraint("queue IN ('cpu', 'gpu')", name="queue"),
        Index("ix_job_tenant_page", "tenant_id", "created_at", "id"),
        Index("ix_job_queued", "priority", "created_at", postgresql_where=text("state = 'queued'")),
        # Not by lease_until: every heartbeat would put a new version of the row into all indexes.
        Index("ix_job_active", "queue", postgresql_where=text("state IN ('running', 'cancelling')")),
        Index("ix_job_count", "tenant_id", "queue", "state", "parent_id"),
        Index("ix_job_metadata", "metadata", postgresql_using="gin"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(server_default="merge")
    state: Mapped[str] = mapped_column(server_default="queued")
    phase: Mapped[str | None]
    progress: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))
    progress_at: Mapped[Time | None]
    method: Mapped[str | None]
    spec: Mapped[OrderedJson]
    recipe: Mapped[OrderedJson]
    recipe_sha256: Mapped[str]
    plan: Mapped[OrderedJson | None]
    queue: Mapped[str] = mapped_column(server_default="cpu")
    priority: Mapped[int] = mapped_column(server_default="0")

    attempt: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int] = mapped_column(server_default="3")
    lease_owner: Mapped[str | None]
    lease_until: Mapped[Time | None]
    heartbeat_at: Mapped[Time | None]
    announced_at: Mapped[Time | None]
    not_before: Mapped[Time | None]
    cancel_requested_at: Mapped[Time | None]
    expires_at: Mapped[Time | None]
    timeout_seconds: Mapped[float]

    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    error_findings: Mapped[list[Json] | None]
    result: Mapped[OrderedJson | None]
    metadata_: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    event_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    root_id: Mapped[str] = mapped_column(index=True)
    retry_of: Mapped[str | None] = mapped_column(ForeignKey("job.id", ondelete="SET NULL"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    """The job that this one is a part of; callers see the whole only."""
    hub_credential_id: Mapped[str | None] = mapped_column(
        ForeignKey("hub_credential.id", ondelete="SET NULL")
    )
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Time | None]
    finished_at: Mapped[Time | None]


class JobInput(Base):
    """One model the job reads, pinned. ``role`` is ``base``, a source id, or ``<source id>+adapter``."""

    __tablename__ = "job_input"
    __table_args__ = (CheckConstraint("kind IN ('hub', 'folder')", name="kind"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    repo: Mapped[str] = mapped_column(index=True)
    requested_revision: Mapped[str | None]
    sha: Mapped[str | None]
    size_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    license: Mapped[str | None]
    private: Mapped[bool] = mapped_column(server_default=text("false"))
    gated: Mapped[bool] = mapped_column(server_default=text("false"))
    params: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))


class JobEvent(Base):
    """One thing that happened; ``seq`` counts from 1 within the job without gaps."""

    __tablename__ = "job_event"
    __table_args__ = (ForeignKeyConstraint(["job_id"], ["job.id"], ondelete="CASCADE"),)

    job_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    type: Mapped[str]
    at: Mapped[CreatedAt]
    data: Mapped[Json]
