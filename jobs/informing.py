"""A planner's look at calibration data: found, checked as far as that is quick, pinned, remembered."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hub.errors import HubError
from hub.snapshot import Hub, Snapshot
from jobs import calibration
from jobs.calibration import DataSeen, Places, Upload
from jobs.errors import RequestInvalid
from jobs.kept import Kept
from jobs.statistics import Shelf
from merge.errors import CalibrationMissing, Finding, MergeError, PlanRefused
from merge.recipe.calibration import Data
from merge.recipe.recipe import Recipe

DATA_BYTES = 64 << 20
CACHE = 64
PIN_SECONDS = 2.0
WAYS = " Upload it (POST /v1/datasets) and name its id, or name a file of a Hub dataset."


class NotRemembered(LookupError):
    """It is not remembered, and nobody is to be asked."""


@dataclass
class DataLooks:
    """Looks at calibration data for a planner; what a commit contains is remembered per caller.

    ``limit`` is the most bytes of a file that are read.
    """

    roots: Sequence[Path]
    limit: int = DATA_BYTES
    clock: Callable[[], float] = time.monotonic
    _pins: Kept[Snapshot] = field(init=False, repr=False)
    _seen: Kept[DataSeen] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pins = Kept(CACHE, self.clock)
        self._seen = Kept(CACHE, self.clock)

    def look(
        self, recipe: Recipe, tenant: str, who: Hashable, hub: Hub | None, shelf: Shelf | None
    ) -> Mapping[str, DataSeen]:
        """Everything that the recipe measures on, by JSON pointer. Without ``hub`` only what is remembered of
        it counts; raises ``NotRemembered`` where that is not enough.

        Raises ``PlanRefused`` with every finding, and a retryable ``HubError``.
        """
        places = self._places(tenant, who, hub, shelf)
        found: dict[str, DataSeen] = {}
        findings = []
        unclear: HubError | None = None
        for pointer, data in calibration.bindings(recipe):
            try:
                found[pointer] = self._see(data, who, places, hub)
            except (HubError, MergeError, RequestInvalid) as error:
                if isinstance(error, HubError) and error.retryable:
                    unclear = error
                else:
                    missing = isinstance(error, RequestInvalid)
                    code = CalibrationMissing.code if missing else error.code
                    findings.append(Finding("error", code, f"{error}{WAYS if missing else ''}", pointer))
        if findings:
            raise PlanRefused(tuple(findings))
        if unclear is not None:
            raise unclear
        return found

    def _see(self, data: Data, who: Hashable, places: Places, hub: Hub | None) -> DataSeen:
        if isinstance(data, str) or data.hub is None or data.file is None:
            return calibration.see(data, places)
        repo, revision = calibration.hub_place(data.hub)
        snapshot = places.pin(repo, revision)
        key = (who, repo, snapshot.sha, data.file)
        held = self._seen.held(key)
        if held is None:
            if hub is None:
                raise NotRemembered
            held = calibration.see(data, places)
            self._seen.put(key, held)
        return held

    def _places(self, tenant: str, who: Hashable, hub: Hub | None, shelf: Shelf | None) -> Places:
        def pin(repo: str, revision: str | None) -> Snapshot:
            def ask() -> Snapshot:
                if hub is None:
                    raise NotRemembered
                return hub.pin(repo, revision, "dataset")

            return self._pins.get((who, repo, revision), ask, PIN_SECONDS)

        def start(snapshot: Snapshot, name: str, count: int) -> bytes:
            if hub is None:
                raise NotRemembered
            return hub.start(snapshot, name, count)

        def upload(name: str) -> Upload | None:
            return shelf.upload(tenant, name) if shelf is not None else None

        return Places(tuple(self.roots), self.limit, upload, pin, start)
