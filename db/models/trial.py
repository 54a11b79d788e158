"""What a search has tried."""

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Json


class Trial(Base):
    """One candidate of a search and what came out (``search.trial.Told``); nothing yet while it waits.

    Retries of a job find it by ``root_id``. ``key`` is the digest of the candidate's recipe, ``share`` the
    part of the examples it is scored on, ``examples`` whether the score of each is wanted, ``number`` its
    place in the search. ``elapsed`` are the seconds since the search began, over all attempts: until it was
    asked for (``created_at``), then until it was scored. ``worker`` is the job that scores it, in its
    ``attempt``; it holds the trial as long as that attempt holds its own lease.
    """

    __tablename__ = "trial"
    __table_args__ = (Index("ix_trial_root_id_number", "root_id", "number"),)

    root_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    share: Mapped[float] = mapped_column(primary_key=True)
    number: Mapped[int]
    point: Mapped[Json]
    told: Mapped[Json | None]
    elapsed: Mapped[float]
    examples: Mapped[bool] = mapped_column(server_default=text("false"))
    worker: Mapped[str | None]
    attempt: Mapped[int | None]
    created_at: Mapped[CreatedAt]
