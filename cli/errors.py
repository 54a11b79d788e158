"""What can go wrong on the command line itself, and which errors of other rooms are told in one line."""


class CliError(Exception):
    """A command cannot be carried out; the message says what to do."""

    code = "command_failed"


class NotRunning(CliError):
    """A command needs a database and none is set or found."""

    code = "not_running"


class AlreadyRunning(CliError):
    """A second `mergery up` on one data folder."""

    code = "already_running"


def one_line(error: BaseException) -> str | None:
    """What to tell of an error that a user can do something about; of any other, nothing."""
    if isinstance(error, CliError | OSError) or _is_ours(error):
        return str(error)
    from psycopg.errors import UndefinedTable  # what most commands do without
    from sqlalchemy.exc import DBAPIError

    if isinstance(error, DBAPIError):
        hint = ": run `mergery migrate` first" if isinstance(error.orig, UndefinedTable) else ""
        return f"the database says: {str(error.orig).partition(chr(10))[0]}{hint}"
    return None


def _is_ours(error: BaseException) -> bool:
    """Whether ``error`` belongs to one of our rooms, whose errors are written for people."""
    room = type(error).__module__.partition(".")[0]
    return room in {"cli", "jobs", "hub", "merge", "worker", "scoring", "search"} and hasattr(error, "code")
