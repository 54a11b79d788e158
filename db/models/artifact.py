"""What a job has made, and the data sets callers have uploaded."""

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt


class Artifact(Base):
    """One output: ``kind`` is ``repo``, ``shard``, ``folder``, ``manifest``, ``card`` or ``report``."""

    __tablename__ = "artifact"
    __table_args__ = (UniqueConstraint("job_id", "kind", "uri"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    kind: Mapped[str]
    uri: Mapped[str]
    sha256: Mapped[str | None]
    size: Mapped[int | None] = mapped_column(BigInteger)
    commit_sha: Mapped[str | None]
    created_at: Mapped[CreatedAt]


class Dataset(Base):
    """A small JSONL or text file uploaded for scoring; the same bytes are kept once per tenant.

    ``last_used_at`` may be up to a day behind.
    """

    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("tenant_id", "sha256"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"))
    sha256: Mapped[str]
    name: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    body: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[CreatedAt]
