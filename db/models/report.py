"""What a merge did to the weights."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json


class MergeReport(Base):
    """The survey of one job's merge (as ``merge.running.survey.summary`` gives it), without tensors."""

    __tablename__ = "merge_report"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    survey: Mapped[Json]
    created_at: Mapped[CreatedAt]
