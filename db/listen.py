"""Wake-ups from the database: which job has changed, which API key was revoked.

A wake-up may be lost, so whoever listens also polls.
"""

from collections.abc import Callable, Iterator

import psycopg

from db.session import CONNECT_SECONDS, KEEPALIVE

CHANNEL = "mergery_job"
LOOK_SECONDS = 0.2


def listen(url: str, should_stop: Callable[[], bool]) -> Iterator[str | None]:
    """Yields the id of each job as it changes and of each key as it is revoked, and ``None`` once connected,
    for what was missed before.

    Ends within a second when ``should_stop`` says so; raises ``psycopg.Error`` when the connection breaks.
    """
    plain = url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(
        plain,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        application_name="mergery-listen",
        **KEEPALIVE,
    ) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        yield None
        while not should_stop():
            for notice in connection.notifies(timeout=LOOK_SECONDS):
                yield notice.payload
                if should_stop():
                    return
