"""The database's clock, so that the clocks of workers do not matter."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, DateTime, Interval, func, literal


def now() -> ColumnElement[datetime]:
    """The time of this statement, not of the transaction's start."""
    return func.clock_timestamp(type_=DateTime(timezone=True))


def seconds(count: float) -> ColumnElement[timedelta]:
    """An interval of ``count`` seconds."""
    return literal(timedelta(seconds=count), Interval())
