"""Scores of a result beside the scores of its parents."""

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json


class Evaluation(Base):
    """One evaluation set of one job. ``kind`` is that of the set, or ``check`` (does the result work?);
    ``task_sha256`` covers items and settings.
    """

    __tablename__ = "evaluation"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    name: Mapped[str]
    kind: Mapped[str]
    passed: Mapped[bool | None]
    detail: Mapped[Json]
    task_sha256: Mapped[str | None]
    created_at: Mapped[CreatedAt]


class EvaluationScore(Base):
    """One number. ``subject`` is ``result`` (``result:`` and its name for a member of a bundle), ``base``, a
    source's or a model's id.

    ``known_key`` finds the scores of single items (``KnownScore``); ``differences`` are this score minus
    that of other subjects, with confidence intervals, by subject.
    """

    __tablename__ = "evaluation_score"

    evaluation_id: Mapped[str] = mapped_column(
        ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True
    )
    subject: Mapped[str] = mapped_column(primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]
    stderr: Mapped[float | None]
    n: Mapped[int | None] = mapped_column(BigInteger)
    higher_is_better: Mapped[bool | None]
    known_key: Mapped[str | None]
    differences: Mapped[Json | None]

    @property
    def is_of_result(self) -> bool:
        """Whether it is a score of what the job has made."""
        return self.subject.partition(":")[0] == "result"
