"""What a run tells: while it goes on, when a shard is done, and at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.header import nbytes_of
from merge.planning.output_tensor import OutputTensor


@dataclass(frozen=True)
class Progress:
    """``bytes`` count what is read, over all passes; ``tensors`` what is written."""

    tensors_done: int
    tensors_total: int
    bytes_done: int
    bytes_total: int


class Together:
    """Tells the progress of several merges, one after another, as one. ``parts`` are their outputs; how much
    one reads is guessed by those until it says so.
    """

    def __init__(self, parts: Mapping[str, Sequence[OutputTensor]], tell: Callable[[Progress], None]) -> None:
        self._tell = tell
        self._last = {
            name: Progress(0, len(outputs), 0, sum(nbytes_of(o.dtype, o.shape) for o in outputs))
            for name, outputs in parts.items()
        }

    def of(self, name: str) -> Callable[[Progress], None]:
        """What one of the merges is to be given."""

        def tell(progress: Progress) -> None:
            self._last[name] = progress
            parts = [vars(each).values() for each in self._last.values()]
            self._tell(Progress(*map(sum, zip(*parts, strict=True))))

        return tell


@dataclass(frozen=True)
class ShardDone:
    """A finished file of weights, with no ``sha256`` where none was wanted. ``reused`` where an earlier run
    had made it. The file may be read until the callback returns, and may be deleted in it (then it is
    recorded as released, and not made again).
    """

    file: str
    path: Path
    sha256: str
    size: int
    reused: bool


@dataclass(frozen=True)
class OutputFile:
    """One file of the result, with no ``sha256`` where none was wanted; ``released`` files were deleted by
    the caller and are not in the folder.
    """

    file: str
    sha256: str
    size: int
    reused: bool = False
    released: bool = False


@dataclass(frozen=True)
class Report:
    """The result of a run: every file of ``out`` with its digest, and the manifest as written to
    mergery.json.
    """

    out: Path
    files: tuple[OutputFile, ...]
    manifest: dict[str, Any]
    tensors: int
    bytes_read: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "out": str(self.out),
            "files": [asdict(file) for file in self.files],
            "tensors": self.tensors,
            "bytes_read": self.bytes_read,
        }
