"""Who wants a plan of an order, and what planning gives of a job of any kind."""

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from jobs.fetching import sizes_of
from jobs.pinned import PinnedInput
from jobs.planning import Planner, download_bytes
from jobs.remarks import remarks
from jobs.wishes import Wish
from merge.checkpoint.bundle import BundleIndex
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.recipe.stages import ADAPTER


class Ready(Protocol):
    """What planning gives of a job of any kind."""

    @property
    def summary(self) -> dict[str, Any]: ...
    @property
    def inputs(self) -> tuple[PinnedInput, ...]: ...
    @property
    def queue(self) -> str: ...
    @property
    def findings(self) -> tuple[Finding, ...]: ...
    @property
    def subject(self) -> dict[str, Any]:
        """What the job works on, every model pinned."""

    def saying(self, facts: Mapping[str, Any]) -> Self:
        """The same, with more in its summary."""


@dataclass(frozen=True)
class PlannedModels:
    """Models that a job reads and does not merge, pinned. ``subject`` is what the row of the job has."""

    summary: dict[str, Any]
    inputs: tuple[PinnedInput, ...]
    queue: str
    findings: tuple[Finding, ...]
    subject: dict[str, Any]
    models: Mapping[str, ModelIndex]

    def saying(self, facts: Mapping[str, Any]) -> "PlannedModels":
        """The same, with more in its summary."""
        return replace(self, summary={**self.summary, **facts})


@dataclass(frozen=True)
class Asking:
    """Who wants a plan, within how many seconds from now, and with how much room on the disk."""

    planner: Planner
    token: str | None
    tenant: str
    deadline_seconds: float | None = None
    notes: tuple[str, ...] = ()
    scratch_free: int | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Seconds that are left of the deadline."""
        if self.deadline_seconds is None:
            return None
        return max(0.0, self.deadline_seconds - (time.monotonic() - self.begun))

    def look(self, wishes: Sequence[Wish]) -> tuple[tuple[PinnedInput, ...], dict[str, ModelIndex]]:
        """Models, pinned and looked at; raises what :meth:`jobs.planning.Planner.look` raises."""
        return self.planner.look(wishes, self.token, self.tenant, self.left)

    def look_at_bundle(self, name: str) -> tuple[PinnedInput, BundleIndex]:
        """A bundle, likewise."""
        return self.planner.look_at_bundle(name, self.token, self.tenant, self.left)


def looked_at(
    inputs: Sequence[PinnedInput],
    models: Mapping[str, ModelIndex],
    queue: str,
    peak: int,
    subject: dict[str, Any],
    files: Mapping[str, Set[str]] | None = None,
) -> PlannedModels:
    """The plan of a job that reads models and makes none; ``peak`` is the memory that it takes. Of every
    model all weights are read, or these files.
    """
    sized = tuple(replace(each, size_bytes=_size(each.role, models, files)) for each in inputs)
    findings = tuple(remarks(sized))
    fetched = download_bytes(sized)
    summary = {
        "models": {
            each.role: {"parameters": models[each.role].parameters, "bytes": models[each.role].bytes}
            for each in sized
            if each.role in models
        },
        "estimate": {
            "download_bytes": fetched,
            "disk_bytes": fetched,
            "peak_memory_bytes": peak,
            "output_bytes": 0,
        },
        "inputs": [each.row() for each in sized],
        "findings": [each.as_dict() for each in findings],
        "queue": queue,
    }
    return PlannedModels(summary, sized, queue, findings, subject, models)


def _size(role: str, models: Mapping[str, ModelIndex], files: Mapping[str, Set[str]] | None) -> int:
    """Bytes that are read of a model, or of an adapter."""
    index = models[role.removesuffix(ADAPTER)]
    if files is None:
        return index.bytes
    sizes = sizes_of(index, role)
    return sum(sizes[file] for file in files[role.removesuffix(ADAPTER)])
