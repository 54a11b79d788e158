"""The trials of `mergery search`, kept in a file, so that a search that was stopped goes on where it was."""

import fcntl
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli.errors import CliError
from search.drive import Candidate, Trial
from search.trial import Told


class File:
    """The journal of a search in a file: the first line says of which search and when its models were last
    ``written`` to, each further one is a trial.
    """

    def __init__(self, path: Path, search: str, written: Mapping[str, int]) -> None:
        self._path, self._known, self.spent_seconds = path, dict[tuple[str, float], Told](), 0.0
        if not path.is_file() or not _whole_lines(path):  # a kill may have cut the first line short
            path.write_text(json.dumps({"search": search, "written": written}) + "\n", encoding="utf-8")
        first, *rest = _whole_lines(path)
        if first.get("search") != search:
            raise CliError(f"{path} has the trials of another search; name another folder with --out")
        if first.get("written", written) != written:
            raise CliError(
                f"{path} has trials of models that were written to since; name another folder with --out"
            )
        for each in rest:
            self._known[each["key"], each["share"]] = Told.of(each["told"])
            self.spent_seconds = max(self.spent_seconds, each["elapsed"])
        self._begun = time.monotonic() - self.spent_seconds

    def find(self, key: str, share: float) -> Told | None:
        """What an earlier run scored."""
        return self._known.get((key, share))

    def record(self, trial: Trial, elapsed: float) -> None:
        """Nothing more: ``note`` has written it."""

    def note(self, candidate: Candidate, told: Told) -> None:
        """Keeps a trial as soon as it is scored, and says so."""
        said = told.error or ", ".join(f"{value:.6g}" for value in told.values or ())
        point = json.dumps(candidate.ask.point) if candidate.ask.point else "as it was sent"
        print(f"{point}: {said}", file=sys.stderr)
        elapsed = time.monotonic() - self._begun
        row = {"key": candidate.key, "share": candidate.share, "told": told.as_dict(), "elapsed": elapsed}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def opened(path: Path, search: str, written: Mapping[str, int]) -> Iterator[File]:
    """A journal, held against other searches until this process ends at the latest. Raises ``CliError`` where
    another one is at work with it: each would overwrite what the other is about to score.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(
                f"another search is at work in {path.parent}; wait for its end, or name another folder with "
                "--out"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield File(path, search, written)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; one that a kill cut short is cut away. Raises ``CliError`` where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        raise CliError(
            f"{path} is no list of trials, or is damaged; remove it, or name another folder with --out"
        ) from None
