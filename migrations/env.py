"""Alembic's entry point. ``migrations/run.py`` hands in the connection; the command line reads the
settings.
"""

from alembic import context
from sqlalchemy import Connection

from db.schema import metadata
from db.session import make_engine
from migrations.run import LOCK_SECONDS
from settings import Settings

LOCK = 7_266_358_241
"""Advisory lock, so that two processes that start at once do not migrate at once."""


def migrate(connection: Connection) -> None:
    """Runs the migrations in one transaction on ``connection``. Those of another process are waited for until
    they are done; a statement waits for its table only so long as ``upgrade`` says.
    """
    patience = context.config.attributes.get("lock_seconds", LOCK_SECONDS)
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK})")
    connection.exec_driver_sql(f"SET lock_timeout = {round(patience * 1000)}")
    connection.commit()
    try:
        context.configure(connection=connection, target_metadata=metadata(), compare_server_default=True)
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    finally:
        connection.rollback()
        connection.exec_driver_sql(f"SELECT pg_advisory_unlock({LOCK})")
        connection.commit()


def from_settings() -> None:
    """For ``alembic`` on the command line."""
    engine = make_engine(Settings().database_url or "postgresql+psycopg:///mergery")
    with engine.connect() as connection:
        migrate(connection)
    engine.dispose()


handed_in: Connection | None = context.config.attributes.get("connection")
if handed_in is None:
    from_settings()
else:
    migrate(handed_in)
