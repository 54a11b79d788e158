"""The one engine and the one session factory."""

import json
import select
import time
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.orm import Session as Session
from sqlalchemy.orm import sessionmaker

import db.schema  # noqa: F401  (registers every model, so that foreign keys resolve)

CONNECT_SECONDS = 10
KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""A machine that is gone without a word is noticed in half a minute; the system's own settings take hours."""
PERHAPS_NOT = (r"\u0000", r"\ud")
"""What written JSON has in it where PostgreSQL may be unable to hold it: NUL, half a surrogate pair."""
IDLE_SECONDS = 30.0
"""A connection unused for so long is asked whether it still leads anywhere."""


def sqlalchemy_url(url: str) -> str:
    """The same URL with the driver named, so that ``postgresql://`` and ``postgres://`` work too."""
    for short in ("postgresql://", "postgres://"):
        if url.startswith(short):
            return "postgresql+psycopg://" + url[len(short) :]
    return url


def make_engine(url: str, *, pool_size: int = 10, max_overflow: int = 20) -> Engine:
    """One engine a process. Times come back in UTC; a dead connection is noticed before use."""
    engine = create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=max_overflow,
        json_serializer=to_json,
        hide_parameters=True,  # errors are logged, and what callers sent is in the parameters
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            **KEEPALIVE,
            "options": "-c timezone=UTC -c idle_in_transaction_session_timeout=600000",
            "application_name": "mergery",
        },
    )
    event.listen(engine, "checkout", _check)
    event.listen(engine, "checkin", _note_use)
    return engine


def _check(connection: Any, record: Any, _fairy: Any) -> None:
    """Looks whether the server has hung up, without a word to it.

    A server that ends a connection says so on the socket, so bytes that nobody asked for mean that it is
    over (and so are its neighbours, as after a restart: the whole pool is made anew). Only a connection
    that has been idle for long is asked with a query, since a network may drop one in silence. To ask each
    time would double the number of round trips.
    """
    idle = time.monotonic() - record.info.get("used_at", float("inf"))
    try:
        over = connection.closed or _has_news(connection.fileno())
        if not over and IDLE_SECONDS < idle < float("inf"):
            connection.execute("SELECT 1")
            connection.rollback()
    except Exception:
        over = True
    if over:
        raise InvalidatePoolError


def _has_news(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def is_away(error: BaseException) -> bool:
    """Whether ``error`` says that the database went away, rather than that it refused something."""
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or type(error).__name__ == "OperationalError"
    )


def has_hung_up(error: BaseException) -> bool:
    """Whether the connection to the database broke or could not be made, whatever was asked of it: nothing
    came back, or that the server ends (57P) or cannot be connected to (08).
    """
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return is_away(error) and (state is None or state.startswith(("57P", "08")))


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def to_json(value: Any) -> str:
    """JSON that PostgreSQL can hold."""
    written = json.dumps(value)
    return json.dumps(storable(value)) if any(each in written for each in PERHAPS_NOT) else written


def storable(value: Any) -> Any:
    """``value`` with what PostgreSQL cannot store in texts, NUL and halves of surrogate pairs, replaced.

    A broken model generates such texts, and a hostile one has them in its files. JSON columns see to it
    themselves, texts and keys of their own do not.
    """
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        kept = [storable(each) for each in value]
        return kept if isinstance(value, list) else tuple(kept)
    return value
