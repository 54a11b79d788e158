"""What the small files of a model say of it: configs, tokenizers and headers, from the Hub or a folder."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hub.snapshot import Hub, Snapshot
from jobs.errors import ModelNameInvalid
from jobs.places import files_inside, prefix_of
from merge.checkpoint import index as indexing
from merge.checkpoint.adapter_names import CONFIG_FILE as ADAPTER_CONFIG
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import AdapterLike, ModelIndex
from merge.checkpoint.places import pieces_in
from merge.checkpoint.wanted import adapter_weight_files, wanted_texts, weight_files
from merge.file_errors import FileMissing

Who = tuple[str, bytes]
"""A tenant, and the digest of the token with which it looks at the Hub."""


@dataclass(frozen=True)
class Seen:
    """A model or an adapter as its small files describe it, and where it was found."""

    index: ModelIndex | AdapterLike
    snapshot: Snapshot | None
    folder: Path | None
    size_bytes: int
    inside: str = ""
    stamp: Hashable = None
    """Differs wherever the model may: the commit, or name, size and time of every file of a folder."""


def who_of(tenant: str, token: str | None) -> Who:
    """Who looks: what one may see, another may not."""
    return tenant, hashlib.sha256((token or "").encode()).digest()


def see_folder(path: Path, name: str, adapter: bool) -> Seen:
    folder = path if path.is_dir() else path.parent
    if adapter:
        files, texts, headers = indexing.read_folder(path, name, adapter=True)
        found: ModelIndex | AdapterLike = indexing.index_adapter(name, files, texts, headers)
    else:
        if path.is_dir():
            _refuse_bare_adapter({item.name for item in path.iterdir() if item.is_file()}, name)
        files, texts, headers = indexing.read_folder(path, name)
        found = indexing.index_model(name, files, texts, headers, pieces_in(path))
    return Seen(found, None, folder, sum(files[each] for each in (*texts, *headers)))


def see_snapshot(hub: Hub, snapshot: Snapshot, name: str, inside: str, adapter: bool) -> Seen:
    prefix = prefix_of(inside)
    files = files_inside({file.path: file.size for file in snapshot.files}, inside)
    if not files and inside:
        raise FileMissing(f"{name}: the repository has nothing called {inside}.")
    if not adapter:
        _refuse_bare_adapter(files, name)

    def told(
        names: Iterable[str], fetch: Callable[[Snapshot, list[str]], Mapping[str, bytes]]
    ) -> dict[str, bytes]:
        fetched = fetch(snapshot, [prefix + each for each in names])
        return {each.removeprefix(prefix): content for each, content in fetched.items()}

    def pieces(wanted: Sequence[TensorInfo]) -> dict[str, bytes]:
        spans = {info.name: (prefix + info.file, info.begin, info.end) for info in wanted}
        fetched = hub.spans(snapshot, spans.values())
        return {tensor: fetched[span] for tensor, span in spans.items()}

    texts = told(wanted_texts(files), hub.texts)
    if adapter:
        headers = told(adapter_weight_files(files), hub.headers)
        found: ModelIndex | AdapterLike = indexing.index_adapter(name, files, texts, headers)
    else:
        headers = told(weight_files(files, texts), partial(hub.headers, ends=indexing.header_end))
        found = indexing.index_model(name, files, texts, headers, pieces)
    return Seen(found, snapshot, None, sum(files[each] for each in (*texts, *headers)), inside)


def _refuse_bare_adapter(names: "Mapping[str, int] | set[str]", name: str) -> None:
    if ADAPTER_CONFIG in names and "config.json" not in names:
        raise ModelNameInvalid(
            f"{name} is a LoRA adapter, not a whole model; give its base as `model`, it as `adapter`."
        )


def stamp_of(path: Path) -> Hashable:
    """Name, size and time of every file of a model's folder (of the one that a file lies in)."""
    items = (path if path.is_dir() else path.parent).iterdir()
    files = [(item.name, item.stat()) for item in items if item.is_file()]
    return tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in files))
