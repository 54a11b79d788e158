"""The migrations and the models say the same; every step can be taken back."""

import importlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import OperationalError

from db.models.job import STATES
from db.schema import metadata
from jobs.states import ALLOWED, State
from migrations.run import current, downgrade, head, upgrade

first = importlib.import_module("migrations.versions.0001_first_tables")
MIGRATING = 7_266_358_241
"""The advisory lock of ``migrations/env.py``."""


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, metadata()))


def test_upgraded_database_has_exactly_the_tables_of_the_models(engine: Engine) -> None:
    assert differences(engine) == []


def test_a_missing_column_would_be_noticed(own_postgres_url: str) -> None:
    engine = create_engine(own_postgres_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE job DROP COLUMN priority"))
    assert differences(engine) != []
    engine.dispose()


def test_downgrade_removes_everything_and_upgrade_brings_it_back(empty_postgres_url: str) -> None:
    upgrade(empty_postgres_url)
    assert current(empty_postgres_url) == head()
    downgrade(empty_postgres_url, "base")
    engine = create_engine(empty_postgres_url)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    with engine.connect() as connection:
        left = connection.scalar(text("SELECT count(*) FROM pg_proc WHERE proname LIKE 'job\\_%'"))
    assert left == 0
    upgrade(empty_postgres_url)
    assert differences(engine) == []
    engine.dispose()


def test_a_second_upgrade_changes_nothing(postgres_url: str) -> None:
    upgrade(postgres_url)
    assert current(postgres_url) == head()


def test_an_upgrade_waits_for_another_one_however_long_that_takes(own_postgres_url: str) -> None:
    engine = create_engine(own_postgres_url)
    with engine.connect() as other, ThreadPoolExecutor(1) as pool:
        other.execute(text(f"SELECT pg_advisory_lock({MIGRATING})"))
        waiting = pool.submit(upgrade, own_postgres_url, lock_seconds=0.05)
        time.sleep(0.4)
        assert not waiting.done()
        other.execute(text("SELECT pg_advisory_unlock_all()"))
        waiting.result(timeout=5)
    engine.dispose()


def test_a_step_does_not_wait_long_for_a_table_that_is_in_use(own_postgres_url: str) -> None:
    downgrade(own_postgres_url, "0008")
    engine = create_engine(own_postgres_url)
    with engine.connect() as other:
        other.execute(text("LOCK TABLE known_score IN ACCESS SHARE MODE"))
        with pytest.raises(OperationalError, match="lock timeout"):
            upgrade(own_postgres_url, lock_seconds=0.05)
    upgrade(own_postgres_url)
    assert current(own_postgres_url) == head()
    engine.dispose()


def test_states_are_the_same_in_rules_models_and_migration() -> None:
    assert {(str(a), str(b)) for a, moves in ALLOWED.items() for b in moves} == set(first.MOVES)
    assert tuple(str(state) for state in State) == STATES


@pytest.mark.parametrize("table", first.NAMES)
def test_every_table_is_listed_for_the_way_down(table: str) -> None:
    assert table in metadata().tables
