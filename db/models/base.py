"""What every table shares: names of constraints, column types, ids."""

from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import JSON, DateTime, MetaData, Text, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column
from ulid import ULID

NAMES = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}

Time = Annotated[datetime, mapped_column(DateTime(timezone=True))]
CreatedAt = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())]
Json = dict[str, Any]
OrderedJson = Annotated[Json, mapped_column(JSON)]
"""Keeps the order of names, which JSONB does not: in a space, or a recipe's new tokens, it counts."""


class Base(DeclarativeBase):
    """Root of all tables."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it as a class attribute)
        str: Text(),
        dict[str, Any]: JSONB(),
        list[dict[str, Any]]: JSONB(),
        list[str]: ARRAY(Text()),
    }


def new_id(prefix: str) -> str:
    """A sortable id such as ``job_01K…``: the prefix, an underscore and a 26-character ULID."""
    return f"{prefix}_{ULID()}"
