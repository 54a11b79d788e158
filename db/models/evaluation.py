"""Scores of a result beside the scores of its parents."""

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json


class Evaluation(Base):
    """One evaluation set of one job. ``kind``: ``perplexity``, ``choice`` or ``check`` (the smoke test)."""

    __tablename__ = "evaluation"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    name: Mapped[str]
    kind: Mapped[str]
    passed: Mapped[bool | None]
    detail: Mapped[Json]
    created_at: Mapped[CreatedAt]


class EvaluationScore(Base):
    """One number. ``subject`` is ``result``, ``base`` or a source id."""

    __tablename__ = "evaluation_score"

    evaluation_id: Mapped[str] = mapped_column(
        ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True
    )
    subject: Mapped[str] = mapped_column(primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]
    stderr: Mapped[float | None]
    n: Mapped[int | None] = mapped_column(BigInteger)
