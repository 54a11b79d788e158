"""Results that stay on this machine: one folder a job, there as a whole or not at all."""

import errno
import os
import shutil
from pathlib import Path


def artifact_folder(data_dir: Path, job_id: str) -> Path:
    """Where the result of a job without an output repository is kept."""
    return data_dir / "artifacts" / job_id


def keep(output: Path, target: Path) -> None:
    """Moves the finished folder ``output`` to ``target``, over disks if need be; nothing if done before."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        output.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        draft = target.with_name(f".{target.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(output, draft)
        for path in draft.rglob("*"):
            if path.is_file():
                _flush(path)
        draft.rename(target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
