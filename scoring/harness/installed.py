"""Whether lm-evaluation-harness can be run here, found out without loading it."""

from collections.abc import Callable, Iterable
from importlib import metadata

from scoring.errors import HarnessMissing
from scoring.harness.task import HARNESS, HarnessTask


def require_installed(tasks: Iterable[object], version: Callable[[str], str] = metadata.version) -> None:
    """Raises ``HarnessMissing`` if one of the tasks is for the harness, and the release whose scores are kept
    is not installed.
    """
    if not any(isinstance(each, HarnessTask) for each in tasks):
        return
    try:
        found = version("lm_eval")
    except metadata.PackageNotFoundError:
        raise missing() from None
    if found != HARNESS:
        raise missing(other=True)


def missing(*, other: bool = False) -> HarnessMissing:
    """What to say where the harness is not there, or only in another release."""
    instead = ", but another release" if other else ""
    return HarnessMissing(
        f"lm-evaluation-harness {HARNESS} is not installed on this worker{instead}; install mergery[eval], "
        "or use the kinds of sets that need no extra"
    )
