"""Statistics of models on data that this service holds, so that no model is measured twice on the same."""

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json, Time


class Statistic(Base):
    """One folder of statistics (``merge.learn.statistics``), by the digest it is found by.

    ``stamp`` tells a model in a folder of this machine from what it may become later: with it the digest of
    ``model`` is known without reading the model. ``manifest`` is that of the folder.
    """

    __tablename__ = "statistic"
    __table_args__ = (
        Index("ix_statistic_tenant_page", "tenant_id", "created_at", "digest"),
        Index("ix_statistic_stamp", "tenant_id", "stamp"),
        Index("ix_statistic_last_used_at", "last_used_at"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    kinds: Mapped[list[str]]
    model: Mapped[str]
    model_sha256: Mapped[str]
    stamp: Mapped[str | None]
    data: Mapped[str]
    data_sha256: Mapped[str]
    tokens: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[int] = mapped_column(BigInteger)
    manifest: Mapped[Json] = mapped_column(deferred=True)
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[Time]

    @property
    def id(self) -> str:
        """What lists are ordered by, besides the time."""
        return self.digest
