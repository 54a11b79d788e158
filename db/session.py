"""The one engine and the one session factory."""

import json
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

import db.schema  # noqa: F401  (registers every model, so that foreign keys resolve)

CONNECT_SECONDS = 10


def sqlalchemy_url(url: str) -> str:
    """The same URL with the driver named, so that ``postgresql://`` and ``postgres://`` work too."""
    for short in ("postgresql://", "postgres://"):
        if url.startswith(short):
            return "postgresql+psycopg://" + url[len(short) :]
    return url


def make_engine(url: str, *, pool_size: int = 10, max_overflow: int = 20) -> Engine:
    """One engine a process. Times come back in UTC; a dead connection is noticed before use."""
    return create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_pre_ping=True,
        json_serializer=to_json,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "options": "-c timezone=UTC -c idle_in_transaction_session_timeout=600000",
            "application_name": "mergery",
        },
    )


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def to_json(value: Any) -> str:
    """JSON that PostgreSQL can hold: it has no NUL in texts, and a broken model may well generate one."""
    return json.dumps(_without_nul(value))


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value
