"""The database's clock, so that the clocks of workers do not matter."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, DateTime, Interval, func, literal, select
from sqlalchemy.orm import Session


def now() -> ColumnElement[datetime]:
    """The time of this statement, not of the transaction's start."""
    return func.clock_timestamp(type_=DateTime(timezone=True))


def seconds(count: float) -> ColumnElement[timedelta]:
    """An interval of ``count`` seconds."""
    return literal(timedelta(seconds=count), Interval())


def reading(session: Session) -> float:
    """What the clock shows, in seconds."""
    return float(session.scalars(select(func.extract("epoch", now()))).one())
