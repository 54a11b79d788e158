"""Results that stay on this machine: one folder a job, there as a whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

ARTIFACTS = "artifacts"
PARTIAL, GONE = ".partial", ".gone"
"""Ends of the names of hidden folders: one that is being made, one that is being removed."""


def artifact_folder(data_dir: Path, job_id: str) -> Path:
    """Where the result of a job without an output repository is kept."""
    return data_dir / ARTIFACTS / job_id


def keep(output: Path, target: Path, hold: Callable[[Path], None] = lambda _: None) -> None:
    """Moves the finished folder ``output`` to ``target``, over disks if need be; nothing if done before.

    ``hold`` is handed the folder that is about to get its name, to lock it before anybody finds it.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    hold(output)
    try:
        output.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        draft = target.with_name(f".{target.name}{PARTIAL}")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            _copy(output, draft)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)  # no later job would: a retry is a job of its own
            raise
        hold(draft)
        draft.rename(target)


def forget(data_dir: Path, removed: Callable[[Collection[str]], Collection[str]]) -> list[str]:
    """Removes what is kept of jobs that ``removed`` picks among those of which there is something; gives
    their ids. A folder of which nobody says that its job was deleted stays, whatever it is.
    """
    folders = {path: _job_of(path) for path in (data_dir / ARTIFACTS).glob("*") if _is_folder(path)}
    gone = set(removed(set(folders.values()))) if folders else set()
    for path, job_id in folders.items():
        if job_id in gone:
            _remove(path)
    return sorted(gone)


def _remove(folder: Path) -> None:
    """Nobody sees a folder of which a part is gone; what a crash leaves is removed the next time."""
    hidden = folder
    if not folder.name.startswith("."):
        hidden = folder.with_name(f".{folder.name}{GONE}")
        shutil.rmtree(hidden, ignore_errors=True)
        with suppress(FileNotFoundError):  # another worker on this disk was quicker
            folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _job_of(folder: Path) -> str:
    """The job whose result a folder is, becomes or was."""
    if not folder.name.startswith("."):
        return folder.name
    return folder.name[1:].removesuffix(PARTIAL).removesuffix(GONE)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _copy(folder: Path, target: Path) -> None:
    """Not ``shutil.copytree``, whose one error for all files no longer says that the disk is full."""
    target.mkdir()
    for path in sorted(folder.rglob("*")):
        copy = target / path.relative_to(folder)
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)
            _flush(copy)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
