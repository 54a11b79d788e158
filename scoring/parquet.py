"""Reads Parquet files of items as the JSON lines that they would be: a row is a line. Loads without pyarrow
until there is such a file.
"""

import io
import json
from collections.abc import Sequence
from typing import Any

from scoring.errors import SetInvalid, SetTooLarge

ENDING, MAGIC = ".parquet", b"PAR1"
ROWS_AT_ONCE = 64


def is_parquet(file: str) -> bool:
    """Whether a file is read as Parquet, by its name."""
    return file.lower().endswith(ENDING)


def lines_of(body: bytes, file: str, most: int) -> bytes:
    """The rows of a Parquet file as JSON lines of at most ``most`` bytes, however small the file is. What is
    null is left out, and what JSON cannot say (dates, pictures) is null. Dates and times are not read at all:
    not every one that a file may hold is one of Python's.

    Raises ``SetInvalid`` and ``SetTooLarge``.
    """
    if not body.startswith(MAGIC):
        raise SetInvalid(file, None, None, f"is called {ENDING} and does not begin as such a file does")
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        problem = "is read with pyarrow, which is not installed here; install it, or give JSON lines"
        raise SetInvalid(file, None, None, problem) from None
    lines, size = [], 0
    try:
        with parquet.ParquetFile(io.BytesIO(body)) as opened:
            _check_size(opened.metadata, file, most)
            _check_names(opened.schema_arrow.names, file)
            said = [field.name for field in opened.schema_arrow if not _holds_times(arrow.types, field.type)]
            for batch in opened.iter_batches(ROWS_AT_ONCE, columns=said, use_threads=False):
                for row in batch.to_pylist():
                    told = {name: value for name, value in row.items() if value is not None}
                    line = json.dumps(told, ensure_ascii=False, default=lambda _: None).encode()
                    size += len(line) + 1
                    if size > most:
                        raise SetTooLarge(f"{file} unfolds to more than {most:,} bytes; give fewer items")
                    lines.append(line)
    except (arrow.ArrowException, OSError, UnicodeError) as error:
        problem = f"cannot be read as Parquet ({str(error)[:200]})"
        raise SetInvalid(file, None, None, problem) from error
    return b"\n".join(lines)


def _holds_times(types: Any, kind: Any) -> bool:
    """Whether values of an Arrow type are dates or times, or hold any."""
    inside = (kind.field(place).type for place in range(kind.num_fields))
    return types.is_temporal(kind) or any(_holds_times(types, each) for each in inside)


def _check_names(names: Sequence[str], file: str) -> None:
    """Whether every column has a name of its own: of two, a row would tell the last."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SetInvalid(file, None, twice, "is the name of more than one column; keep one")


def _check_size(metadata: Any, file: str, most: int) -> None:
    """Whether what the file says of itself is within bounds, before any of it is unfolded."""
    said = sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups))
    if said > most:
        raise SetTooLarge(f"{file} unfolds to {said:,} bytes; at most {most:,} are scored")
