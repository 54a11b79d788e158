"""A model that a job reads, found and pinned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.snapshot import Snapshot
from jobs.places import prefix_of


@dataclass(frozen=True)
class PinnedInput:
    """One model that the job reads. ``role`` is ``base``, a source id, or ``<source id>+adapter``.

    A Hub model has a ``snapshot``, and may lie ``inside`` it; a folder model has a ``folder``.
    ``size_bytes`` counts what is read of it.
    """

    role: str
    name: str
    snapshot: Snapshot | None
    folder: Path | None
    size_bytes: int
    inside: str = ""
    stamp: str | None = None
    """Of a folder: differs when somebody has touched it."""
    listed_bytes: int = 0
    """Bytes of all its files that are looked at, read or not."""

    @property
    def pinned_name(self) -> str:
        """The name with the commit it was pinned to."""
        if self.snapshot is None:
            return self.name
        return f"{self.snapshot.repo}@{self.snapshot.sha}" + (f":{self.inside}" if self.inside else "")

    @property
    def is_restricted(self) -> bool:
        """Whether not everybody may read it."""
        return self.snapshot is not None and (self.snapshot.private or self.snapshot.gated)

    @property
    def listed_sums(self) -> dict[str, str]:
        """The sha256 (hex) of files of a Hub model as its commit lists them, by their names in the model's
        folder; nothing of a folder's.
        """
        prefix = prefix_of(self.inside)
        files = self.snapshot.files if self.snapshot is not None else ()
        return {
            file.path.removeprefix(prefix): file.sha256
            for file in files
            if file.sha256 is not None and file.path.startswith(prefix)
        }

    def row(self) -> dict[str, Any]:
        """The columns of ``job_input``."""
        pinned = self.snapshot
        return {
            "role": self.role,
            "kind": "hub" if pinned else "folder",
            "repo": pinned.repo if pinned else self.name,
            "requested_revision": pinned.requested_revision if pinned else None,
            "sha": pinned.sha if pinned else None,
            "size_bytes": self.size_bytes,
            "license": pinned.license if pinned else None,
            "private": bool(pinned and pinned.private),
            "gated": bool(pinned and pinned.gated),
            "params": {"inside": self.inside} if self.inside else {},
        }
