"""Brings the Hub models of a job onto the work disk, verified, into the job's own folder."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hub.download import download
from hub.snapshot import Hub, Snapshot
from merge.checkpoint.adapter import WEIGHT_FILE
from merge.checkpoint.index import ModelIndex

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One repository and the files of it which the job needs."""

    role: str
    snapshot: Snapshot
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the wanted files."""
        return sum(self.snapshot.file(name).size for name in self.names)


def wanted_names(file_names: Iterable[str], weights: Iterable[str]) -> tuple[str, ...]:
    """The weight files and the small files beside them, such as the config; never code or pickles."""
    names = list(file_names)
    small = (name for name in names if any(fnmatchcase(name, pattern) for pattern in SMALL_FILES))
    return tuple(sorted({*small, *weights}))


def weights_of(index: ModelIndex, role: str) -> tuple[str, ...]:
    """The weight files which the model index reads under ``role``: its own, or its adapter's."""
    if role.endswith("+adapter"):
        return (WEIGHT_FILE,)
    return index.shards


def fetch(
    hub: Hub,
    wanted: Iterable[Wanted],
    folder: Path,
    *,
    on_bytes: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> Mapping[str, Path]:
    """Downloads into ``folder/<role>``; ``on_bytes`` gets the bytes that are there and all bytes.

    A repository that is wanted twice is fetched once. Raises what :func:`hub.download.download` raises.
    """
    requests = list(wanted)
    total = sum(request.size for request in requests)
    there = 0

    def count(number: int) -> None:
        nonlocal there
        there += number
        on_bytes(there, total)

    folders: dict[str, Path] = {}
    known: dict[tuple[str, str], Path] = {}
    for request in requests:
        key = (request.snapshot.repo, request.snapshot.sha)
        target = known.setdefault(key, folder / request.role)
        download(hub, request.snapshot, target, request.names, on_bytes=count, should_stop=should_stop)
        folders[request.role] = target
    return folders
