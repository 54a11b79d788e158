"""The front that a search has found."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, OrderedJson


class Front(Base):
    """The front of one job (``search.result.kept_front``): measured and predicted points, and the recipe that
    they are placed in.
    """

    __tablename__ = "front"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    body: Mapped[OrderedJson]
    created_at: Mapped[CreatedAt]
