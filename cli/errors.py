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


def is_ours(error: BaseException) -> bool:
    """Whether ``error`` belongs to one of our rooms, whose errors are written for people."""
    room = type(error).__module__.partition(".")[0]
    return room in {"cli", "jobs", "hub", "merge", "worker", "scoring", "search"} and hasattr(error, "code")
