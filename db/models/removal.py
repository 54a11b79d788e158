"""What was deleted."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt


class RemovedJob(Base):
    """A job that a caller has deleted: whoever keeps files of it may remove them."""

    __tablename__ = "removed_job"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[CreatedAt]
