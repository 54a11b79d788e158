"""The plain files of one repository folder: which they are, what they hash to, how they are put in place."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hub.names import is_safe_path

REGULAR_LIMIT = 10 << 20
SAMPLE_BYTES = 512
LARGE_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".model", ".npz",
    ".npy", ".pkl", ".parquet", ".arrow", ".zip", ".gz", ".zst", ".tar",
)  # fmt: skip
SHOWN_DOTFILES = (".gitattributes", ".gitignore")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a tree. ``oid`` is the git blob id of what git would hold: the file, or the pointer to a
    large file.
    """

    size: int
    oid: str
    sha256: str | None

    @property
    def etag(self) -> str:
        """What identifies the content: sha256 of a large file, git blob id of any other."""
        return self.sha256 or self.oid


Tree = dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file looks like from outside; the same stamp means the same content."""

    size: int
    mtime_ns: int


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file outside git: by name, by size, or for a NUL in its first 512 bytes."""
    return size > 0 and (
        path.endswith(LARGE_SUFFIXES) or size > REGULAR_LIMIT or b"\0" in sample[:SAMPLE_BYTES]
    )


def blob_oid(data: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def large_entry(size: int, sha256: str) -> Entry:
    """The entry of a large file, with the id of its pointer as git LFS writes it."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Entry(size, blob_oid(pointer.encode()), sha256)


def is_shown(name: str) -> bool:
    """Whether a repository may hold a file of this name: a safe path without hidden parts."""
    parts = name.split("/")
    return is_safe_path(name) and all(not part.startswith(".") or part in SHOWN_DOTFILES for part in parts)


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file as it is now."""
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns)


def entry_of(path: Path, name: str) -> Entry:
    """Hash one file, reading it in pieces."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        sample = file.read(SAMPLE_BYTES)
        file.seek(0)
        if is_large(name, size, sample):
            return large_entry(size, hashlib.file_digest(file, "sha256").hexdigest())
        return Entry(size, blob_oid(file.read()), None)


def scan(folder: Path) -> dict[str, Stamp]:
    """Every file of a folder that a repository shows. Dot files, and links that lead out of the folder or
    nowhere, are not shown.
    """
    home = folder.resolve()
    return {
        name: Stamp(status.st_size, status.st_mtime_ns)
        for name, status in _walk(home, home, "")
        if is_safe_path(name)
    }


def _walk(home: Path, folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            if entry.name.startswith(".") and entry.name not in SHOWN_DOTFILES:
                continue
            if entry.is_symlink() and not _leads_into(home, entry.path):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(home, Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name, entry.stat()


def _leads_into(home: Path, link: str) -> bool:
    try:
        return Path(link).resolve(strict=True).is_relative_to(home)
    except (OSError, RuntimeError):  # to nothing, or in a circle
        return False


def hash_files(folder: Path, names: Iterable[str]) -> Mapping[str, Entry]:
    """Entries of the named files; hashing releases the interpreter, so a few threads share the work."""
    wanted = list(names)
    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="hub-hash") as pool:
        return dict(zip(wanted, pool.map(lambda name: entry_of(folder / name, name), wanted), strict=True))


def link_into(source: Path, target: Path) -> None:
    """Put ``source`` at ``target`` in one step, as a hard link where that is possible, else as a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            sync(temporary)
        if temporary.samefile(target) if target.exists() else False:
            return
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_once(target: Path, data: bytes) -> None:
    """Write a small file durably, in one step, unless it is there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(data)
    keep(temporary, target)


def keep(temporary: Path, target: Path) -> None:
    """Turn a finished temporary file into a read-only object, durably."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.chmod(0o444)
    sync(temporary)
    temporary.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_empty_parents(path: Path, home: Path) -> None:
    """Remove the folders above ``path`` that have become empty, up to but not including ``home``."""
    for parent in path.parents:
        if parent == home:
            return
        try:
            parent.rmdir()
        except OSError:
            return
