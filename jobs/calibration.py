"""Calibration data as it is seen before anything starts: that it exists, how large it is, how it begins.

What a recipe binds to its models is found, looked at and pinned; ``worker.datasets`` reads all of it later.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hub.snapshot import Snapshot
from jobs.errors import RequestInvalid
from jobs.places import HUB_NAME, find_inside, reading
from merge.errors import (
    CalibrationEmpty,
    CalibrationEncoding,
    CalibrationFormat,
    CalibrationMissing,
    CalibrationTooLarge,
    CalibrationTooShort,
)
from merge.learn.samples import LINES, TEXTS, default_set, documents_of
from merge.recipe.calibration import CalibrationData, Data
from merge.recipe.recipe import Recipe

PARQUET = ".parquet"
FIRST_BYTES = 1 << 16
"""How much of a file is looked at before a job starts."""
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class DataSeen:
    """Calibration data that is there. ``pinned`` names it for good, ``sha256`` (hex) is that of its bytes."""

    pinned: Data
    sha256: str
    stamp: Hashable = None
    snapshot: Snapshot | None = field(default=None, repr=False)
    lines: bool = False
    """Whether it is read as lines of JSON."""


@dataclass(frozen=True)
class Upload:
    """An uploaded file as its row tells; ``first`` are its first bytes."""

    name: str
    sha256: str
    size: int
    first: bytes = field(repr=False)


@dataclass(frozen=True)
class Places:
    """Where data may lie. ``uploads`` finds an upload of the tenant's by id, ``pin`` a dataset's commit,
    ``start`` the first bytes of a file of it, ``limit`` is the most bytes of a file that are read.
    """

    roots: tuple[Path, ...]
    limit: int
    uploads: Callable[[str], Upload | None]
    pin: Callable[[str, str | None], Snapshot]
    start: Callable[[Snapshot, str, int], bytes]


def bindings(recipe: Recipe) -> Iterator[tuple[str, Data]]:
    """(JSON pointer, data) of everything that a recipe may measure on; nothing where no step measures."""
    if not recipe.informed:
        return
    yield "/calibration/data", recipe.calibration.data
    for key, data in recipe.calibration.by_source.items():
        yield f"/calibration/by_source/{key}", data


def see(data: Data, places: Places) -> DataSeen:
    """Looks at data. Raises a subclass of ``CalibrationInvalid``, ``RequestInvalid``, or a ``HubError``."""
    if not isinstance(data, CalibrationData):
        return DataSeen("default", default_set()[1], "default")
    if data.hub is not None and data.file is not None:
        return _see_hub(data, data.hub, data.file, places)
    if data.dataset is not None:
        return _see_upload(data, data.dataset, places)
    return _see_path(data, data.path or "", places)


def pin(recipe: Recipe, seen: Mapping[str, DataSeen]) -> Recipe:
    """The recipe with every dataset at its commit; ``seen`` by JSON pointer."""
    if not seen:
        return recipe
    calibration = recipe.calibration
    by_source = {key: seen[f"/calibration/by_source/{key}"].pinned for key in calibration.by_source}
    update = {"data": seen["/calibration/data"].pinned, "by_source": by_source}
    return recipe.model_copy(update={"calibration": calibration.model_copy(update=update)})


def bound(recipe: Recipe, seen: Mapping[str, DataSeen], key: str) -> DataSeen:
    """The data that the model ``key`` is measured on."""
    own = f"/calibration/by_source/{key}"
    return seen[own if key in recipe.calibration.by_source else "/calibration/data"]


def hub_place(name: str, pointer: str = "") -> tuple[str, str | None]:
    """Repository and revision of ``org/name[@revision]``; raises ``RequestInvalid``."""
    found = HUB_NAME.fullmatch(name)
    if found is None:
        raise RequestInvalid(f"{name!r} is not a Hub dataset: write org/name[@revision].", pointer)
    return found["repo"], found["revision"]


def kind_of(name: str, first: bytes) -> str:
    """How a file is read, as the ending of its name. A name without a known ending is an upload's: lines of
    JSON begin with a brace.
    """
    ending = PurePosixPath(name).suffix.lower()
    if ending in (*TEXTS, *LINES, PARQUET):
        return ending
    return LINES[0] if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else TEXTS[0]


def check_start(label: str, kind: str, first: bytes, size: int, limit: int) -> None:
    """What can be told of a file from its size and its first bytes; raises a subclass of
    ``CalibrationInvalid``.
    """
    if size > limit:
        raise CalibrationTooLarge(
            f"{label} has {size} bytes; at most {limit} are read. A few hundred documents do."
        )
    if size == 0:
        raise CalibrationEmpty(f"{label} is empty; give documents of the kind the model is for.")
    if kind == PARQUET:
        if not first.startswith(_MAGIC):
            raise CalibrationFormat(f"{label} is called .parquet and does not begin as such a file does.")
        return
    if len(first) >= size:
        documents_of(first, kind, label)
        return
    whole = first[: first.rfind(b"\n") + 1]
    if whole.strip():
        with suppress(CalibrationEmpty, CalibrationTooShort):
            documents_of(whole, kind, label)
    else:
        _check_characters(first, label)


def _check_characters(first: bytes, label: str) -> None:
    """One very long line: its last character may have been cut."""
    try:
        first.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(first) - error.start >= 4:
            raise CalibrationEncoding(
                f"{label} is not UTF-8: byte {error.start} is {first[error.start]:#04x}."
            ) from None


def _see_hub(data: CalibrationData, name: str, file: str, places: Places) -> DataSeen:
    _check_ending(file)
    repo, revision = hub_place(name)
    snapshot = places.pin(repo, revision)
    listed = snapshot.file(file)
    label = f"{file} of {snapshot.label}"
    wanted = min(listed.size, FIRST_BYTES) if listed.sha256 is not None else listed.size
    first = places.start(snapshot, file, wanted) if 0 < listed.size <= places.limit else b""
    kind = kind_of(file, first)
    check_start(label, kind, first, listed.size, places.limit)
    sha256 = listed.sha256 or hashlib.sha256(first).hexdigest()
    pinned = data.model_copy(update={"hub": f"{snapshot.repo}@{snapshot.sha}"})
    return DataSeen(pinned, sha256, (snapshot.repo, snapshot.sha, file), snapshot, kind in LINES)


def _see_upload(data: CalibrationData, name: str, places: Places) -> DataSeen:
    found = places.uploads(name)
    if found is None:
        raise CalibrationMissing(f"There is no dataset {name!r}; upload it first (POST /v1/datasets).")
    kind = kind_of(found.name, found.first)
    check_start(name, kind, found.first, found.size, places.limit)
    return DataSeen(data, found.sha256, (name, found.sha256), lines=kind in LINES)


def _see_path(data: CalibrationData, name: str, places: Places) -> DataSeen:
    _check_ending(name)
    path = find_inside(name, places.roots, folder=False)
    with reading(name), path.open("rb") as file:
        status = os.fstat(file.fileno())
        first = file.read(FIRST_BYTES)
        kind = kind_of(name, first)
        check_start(name, kind, first, status.st_size, places.limit)
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return DataSeen(data, sha256, (str(path), status.st_size, status.st_mtime_ns), lines=kind in LINES)


def _check_ending(name: str) -> None:
    if not name.lower().endswith((*TEXTS, *LINES, PARQUET)):
        known = ", ".join((*TEXTS, *LINES, PARQUET))
        raise CalibrationFormat(f"{name} is no calibration data that is known: its name must end in {known}.")
