"""What a search has tried."""

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json


class Trial(Base):
    """One candidate of a search and what came out (``search.trial.Told``).

    Retries of a job find it by ``root_id``. ``key`` is the digest of the candidate's recipe, ``share`` the
    part of the examples it was scored on, ``number`` its place in the search, ``elapsed`` the seconds since
    the search began, over all attempts.
    """

    __tablename__ = "trial"
    __table_args__ = (Index("ix_trial_root_id_number", "root_id", "number"),)

    root_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    share: Mapped[float] = mapped_column(primary_key=True)
    number: Mapped[int]
    point: Mapped[Json]
    told: Mapped[Json]
    elapsed: Mapped[float]
    created_at: Mapped[CreatedAt]
