"""What goes into JSON columns, and what becomes of dead connections."""

from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.session import is_away, make_engine, to_json


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"generated": "a\0b", "deep": ["\0"]}, {"generated": "a\ufffdb", "deep": ["\ufffd"]}),
        ({"generated": ("a\ud800b",), "\udfff": 1}, {"generated": ["a?b"], "?": 1}),
        ({"generated": "\U0001f600 \\u0000 \\ud800"}, {"generated": "\U0001f600 \\u0000 \\ud800"}),
    ],
)
def test_what_a_text_cannot_hold_does_not_stop_a_row(session: Session, value: Any, kept: Any) -> None:
    assert session.scalar(text("SELECT CAST(:value AS jsonb)"), {"value": to_json(value)}) == kept


def test_connections_that_the_server_ended_are_replaced_without_a_word(postgres_url: str) -> None:
    engine = make_engine(postgres_url, pool_size=3)
    held = [engine.connect() for _ in range(3)]
    before = {each.scalar(text("SELECT pg_backend_pid()")) for each in held}
    for each in held:
        each.close()
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as admin:
        for pid in before:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    for _ in range(4):
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) not in before
    engine.dispose()


def test_a_live_connection_is_used_again_without_being_asked(postgres_url: str) -> None:
    engine = make_engine(postgres_url, pool_size=1, max_overflow=0)
    pids = set()
    for _ in range(3):
        with engine.connect() as connection:
            pids.add(connection.scalar(text("SELECT pg_backend_pid()")))
            said = connection.scalar(text("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"))
    assert len(pids) == 1 and "pg_stat_activity" in str(said)
    engine.dispose()


def test_a_database_that_is_gone_without_a_word_is_noticed_soon(postgres_url: str) -> None:
    engine = make_engine(postgres_url)
    with engine.connect() as connection:
        driven = connection.connection.driver_connection
        assert driven is not None
        said = driven.info.get_parameters()
    engine.dispose()
    assert int(said["keepalives_idle"]) + 3 * int(said["keepalives_interval"]) <= 30
    assert int(said["tcp_user_timeout"]) <= 30_000


def test_a_database_that_is_away_is_told_from_a_refusal(postgres_url: str) -> None:
    engine = make_engine(postgres_url, pool_size=1)
    with engine.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(text("SELECT 1 / 0"))
    engine.dispose()
    nobody = make_engine("postgresql://127.0.0.1:9/none")
    with pytest.raises(DBAPIError) as away:
        nobody.connect()
    assert (is_away(refused.value), is_away(away.value)) == (False, True)


def test_errors_do_not_tell_what_was_sent(postgres_url: str) -> None:
    engine = make_engine(postgres_url)
    with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(text("SELECT 1 / length(:said) - 1 / 0"), {"said": "https://hook.example/secret"})
    engine.dispose()
    assert "division by zero" in str(caught.value) and "secret" not in str(caught.value)
