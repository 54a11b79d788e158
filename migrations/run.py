"""Brings a database to a revision; works from a checkout and from an installed wheel alike."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from db.session import make_engine

FOLDER = Path(__file__).parent
LOCK_SECONDS = 10.0


def config() -> Config:
    """Alembic's configuration, with the scripts of this very package."""
    made = Config()
    made.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    return made


def upgrade(url: str, revision: str = "head", lock_seconds: float = LOCK_SECONDS) -> None:
    """Brings the database up to ``revision``. Two processes may ask at once: the second one waits for the
    first. A statement fails whose table others hold for ``lock_seconds``.
    """
    _run(url, lambda made: command.upgrade(made, revision), lock_seconds)


def downgrade(url: str, revision: str) -> None:
    """Takes the database down to ``revision``; ``base`` removes everything."""
    _run(url, lambda made: command.downgrade(made, revision))


def head() -> str:
    """The newest revision that this code knows."""
    found = ScriptDirectory.from_config(config()).get_current_head()
    if found is None:
        raise FileNotFoundError(f"no migration scripts in {FOLDER}; the installation is broken")
    return found


def current(url: str) -> str | None:
    """The revision of the database, nothing when it is empty."""
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def _run(url: str, work: Callable[[Config], None], lock_seconds: float = LOCK_SECONDS) -> None:
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            made = config()
            made.attributes["connection"] = connection
            made.attributes["lock_seconds"] = lock_seconds
            work(made)
    finally:
        engine.dispose()
