"""The one engine and the one session factory."""

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
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "options": "-c timezone=UTC -c idle_in_transaction_session_timeout=600000",
            "application_name": "mergery",
        },
    )


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)
