"""The texts that a job names: a file of a Hub dataset, an upload, or a file inside the allowed roots."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any, Protocol

from db import artifacts
from hub.snapshot import Hub
from jobs.calibration import PARQUET, check_start, hub_place, kind_of
from jobs.errors import NotFound
from jobs.places import find_inside, reading
from jobs.statistics import label_of, samples_for
from merge.errors import CalibrationFormat, CalibrationTooLarge
from merge.learn.samples import LINES, MAX_BYTES, Samples, default_set, documents_of, enough
from merge.recipe.calibration import CalibrationData, Data
from merge.recipe.recipe import Recipe
from worker.workshop import Workshop

COLUMN = "text"
ROWS_AT_ONCE = 1024


class Named(Protocol):
    """Where a file is: exactly one of ``hub`` (with ``file``), ``dataset`` and ``path``."""

    @property
    def hub(self) -> str | None: ...
    @property
    def file(self) -> str | None: ...
    @property
    def dataset(self) -> str | None: ...
    @property
    def path(self) -> str | None: ...


def read_file(
    workshop: Workshop, tenant_id: str, wanted: Named, hub: Hub, limit: int, pointer: str = ""
) -> tuple[str, bytes]:
    """Name and content of a file; of one on this disk no more than ``limit`` bytes and one.

    Raises ``RequestInvalid``, ``NotFound`` or a ``HubError``.
    """
    if wanted.hub is not None and wanted.file is not None:
        repo, revision = hub_place(wanted.hub, pointer)
        snapshot = hub.pin(repo, revision, "dataset")
        return wanted.file, hub.read_file(snapshot, wanted.file, limit)
    if wanted.dataset is not None:
        with workshop.transaction() as session:
            row = artifacts.use_dataset(session, tenant_id, wanted.dataset, with_body=True)
            if row is None:
                raise NotFound("dataset", wanted.dataset)
            return row.name, row.body
    path = find_inside(wanted.path or "", workshop.settings.model_roots, folder=False)
    with reading(path.name), path.open("rb") as file:
        return path.name, file.read(limit + 1)


def read_samples(workshop: Workshop, tenant_id: str, recipe: Recipe, data: Data, hub: Hub) -> Samples:
    """All of a calibration set, checked to its end; raises a subclass of ``CalibrationInvalid`` besides what
    ``read_file`` raises.
    """
    if not isinstance(data, CalibrationData):
        texts, sha256 = default_set()
        return samples_for(recipe, label_of(data), sha256, texts)
    limit = workshop.settings.max_calibration_bytes
    name, raw = read_file(workshop, tenant_id, data, hub, limit, "/calibration/data")
    label = label_of(data)
    kind = kind_of(name, raw)
    check_start(label, kind, raw[: len(PARQUET)] if kind == PARQUET else raw, len(raw), limit)
    texts = parquet_texts(raw, label) if kind == PARQUET else documents_of(raw, kind, label)
    return samples_for(recipe, label, hashlib.sha256(raw).hexdigest(), texts, lines=kind in LINES)


def parquet_texts(raw: bytes, label: str, limit: int = MAX_BYTES) -> tuple[str, ...]:
    """The column ``text`` of a Parquet file, without empty ones; ``limit`` bounds the bytes of all of them,
    however small the file is.
    """
    texts, size = [], 0
    for text in _column(raw, label, limit):
        size += len(text.encode())
        if size > limit:
            raise CalibrationTooLarge(f"{label} unfolds to more than {limit} bytes; give fewer documents.")
        texts.append(text)
    return enough(texts, label)


def _column(raw: bytes, label: str, limit: int) -> Iterator[str]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(io.BytesIO(raw)) as file:
            _check_column(file.schema_arrow, arrow.types, label)
            _check_unfolded(file.metadata, label, limit)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[COLUMN], use_threads=False):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CalibrationFormat(f"{label} cannot be read as Parquet ({str(error)[:200]}).") from error


def _check_column(schema: Any, types: Any, label: str) -> None:
    """Whether there is one column of texts; categories of pandas are texts that are listed once."""
    kinds = [each.type for each in schema if each.name == COLUMN]
    if len(kinds) > 1:
        raise CalibrationFormat(f"{label} has {len(kinds)} columns that are called {COLUMN!r}; keep one.")
    values = [kind.value_type if types.is_dictionary(kind) else kind for kind in kinds]
    if not any(types.is_string(v) or types.is_large_string(v) or types.is_string_view(v) for v in values):
        names = ", ".join(schema.names[:20])
        raise CalibrationFormat(f"{label} has no column {COLUMN!r} of texts; it has {names}.")


def _check_unfolded(metadata: Any, label: str, limit: int) -> None:
    """Whether what the file says of itself is within bounds, before any of it is unfolded."""
    said = sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups))
    if said > limit:
        raise CalibrationTooLarge(f"{label} unfolds to {said} bytes; at most {limit} are read.")
