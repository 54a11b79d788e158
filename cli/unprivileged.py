"""PostgreSQL refuses to run as root. As root, its files and its process belong to another user."""

import hashlib
import os
import pwd
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CANDIDATES = ("postgres", "nobody")
OPEN_FOLDER = Path("/var/lib/mergery")


@dataclass(frozen=True)
class Account:
    """The user and group that a server runs as."""

    uid: int
    gid: int

    @classmethod
    def for_servers(cls) -> "Account | None":
        """Nothing unless we are root; then the user ``postgres``, or ``nobody`` where there is none."""
        if os.geteuid() != 0:
            return None
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        found = next((known[name] for name in CANDIDATES if name in known and known[name].pw_uid != 0), None)
        if found is None:
            names = " or ".join(CANDIDATES)
            raise LookupError(f"no user {names} on this system; create one, or do not run as root")
        return cls(found.pw_uid, found.pw_gid)

    def may_enter(self, path: Path) -> bool:
        """Whether this account can pass through every folder above ``path``, as far as they exist."""
        return all(self._may_pass(folder) for folder in path.resolve().parents if folder.exists())

    def own(self, folder: Path) -> None:
        """Gives a folder to this account, closed to all others."""
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, self.uid, self.gid)
        folder.chmod(0o700)

    def _may_pass(self, folder: Path) -> bool:
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & 0o100)
        if status.st_gid == self.gid:
            return bool(status.st_mode & 0o010)
        return bool(status.st_mode & 0o001)


def reachable_home(account: Account | None, wanted: Path) -> Path:
    """``wanted``, or a folder of the same purpose under /var/lib/mergery when ``account`` cannot enter it.

    Nobody's permissions are widened: a home of root (mode 700) stays closed.
    """
    if account is None or account.may_enter(wanted):
        return wanted
    name = hashlib.sha256(str(wanted.resolve()).encode()).hexdigest()[:12]
    _open(OPEN_FOLDER)
    return OPEN_FOLDER / f"{wanted.name}-{name}"


def reachable_programs(account: Account | None, folders: Sequence[Path], program: Path, version: str) -> Path:
    """``program``, or its copy when ``account`` cannot enter the virtual environment it is installed in.

    ``folders`` stand side by side and refer to each other by relative paths; they are copied together, once a
    version.
    """
    if account is None or account.may_enter(program):
        return program
    root = folders[0].parent
    target = OPEN_FOLDER / f"programs-{version}"
    if not target.exists():
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        _open(OPEN_FOLDER)
        _open(draft)
        for folder in folders:
            shutil.copytree(folder, draft / folder.name, symlinks=True)
        try:
            draft.rename(target)
        except OSError:
            shutil.rmtree(draft)
            if not target.exists():
                raise
    return target / program.relative_to(root)


def _open(folder: Path) -> None:
    """Makes a folder that everybody may enter, whatever the umask."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
