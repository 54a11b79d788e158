"""What a folder Hub remembers besides the files: one small SQLite file, written in transactions that survive
a kill.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hub.folder_files import Entry, Stamp, Tree

SCHEMA = """
create table if not exists digest (folder text, name text, size integer, mtime_ns integer, oid text,
    sha256 text, primary key (folder, name)) without rowid;
create table if not exists repo (key text primary key, marks text not null);
create table if not exists revision (repo text, id text, parent text, title text, created real, tree text,
    primary key (repo, id)) without rowid;
create table if not exists branch (repo text, name text, head text not null, laid_out text,
    primary key (repo, name)) without rowid;
create table if not exists upload (repo text, sha256 text, primary key (repo, sha256)) without rowid;
create table if not exists xet (sha256 text primary key, hash text not null);
"""


@dataclass(frozen=True)
class Revision:
    """One commit of one repository."""

    id: str
    parent: str | None
    title: str
    created: float
    tree: Tree


class FolderState:
    """Digests, marks, revisions, branches and uploads. Safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")

    def _rows(self, query: str, *values: object) -> list[tuple[str, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def digests(self, folder: str) -> dict[str, tuple[Stamp, Entry]]:
        """What is known of the files of ``folder``, with the stamps they had when they were hashed."""
        with self._lock:
            rows = self._db.execute(
                "select name, size, mtime_ns, oid, sha256 from digest where folder = ?", (folder,)
            )
            return {row[0]: (Stamp(row[1], row[2]), Entry(row[1], row[3], row[4])) for row in rows}

    def digest(self, folder: str, name: str) -> tuple[Stamp, Entry] | None:
        """As ``digests``, for one file."""
        rows = self._rows(
            "select size, mtime_ns, oid, sha256 from digest where folder = ? and name = ?", folder, name
        )
        return next(((Stamp(int(r[0]), int(r[1])), Entry(int(r[0]), r[2], r[3])) for r in rows), None)

    def remember(self, folder: str, known: Mapping[str, tuple[Stamp, Entry]]) -> None:
        """Keep digests for later."""
        with self.transaction() as db:
            db.executemany(
                "insert or replace into digest values (?, ?, ?, ?, ?, ?)",
                [(folder, n, s.size, s.mtime_ns, e.oid, e.sha256) for n, (s, e) in known.items()],
            )

    def marks(self, repo: str) -> str | None:
        """The stored marks (JSON) of a repository made through the protocol."""
        return next((row[0] for row in self._rows("select marks from repo where key = ?", repo)), None)

    def set_marks(self, repo: str, marks: str) -> None:
        """Store marks."""
        with self.transaction() as db:
            db.execute("insert or replace into repo values (?, ?)", (repo, marks))

    def branches(self, repo: str) -> dict[str, str]:
        """Branch names and their heads."""
        rows = self._rows("select name, head from branch where repo = ? order by name", repo)
        return {row[0]: row[1] for row in rows}

    def unfinished(self, repo: str, branch: str) -> bool:
        """Whether the head of ``branch`` was committed but its files may not all be in place."""
        rows = self._rows(
            "select 1 from branch where repo = ? and name = ? and head is not laid_out", repo, branch
        )
        return bool(rows)

    def commit(self, repo: str, branch: str, revision: Revision, *, laid_out: bool) -> None:
        """Store a revision and move the branch to it, at once."""
        tree = json.dumps({name: [e.size, e.oid, e.sha256] for name, e in revision.tree.items()})
        with self.transaction() as db:
            db.execute(
                "insert or ignore into revision values (?, ?, ?, ?, ?, ?)",
                (repo, revision.id, revision.parent, revision.title, revision.created, tree),
            )
            db.execute(
                "insert or replace into branch values (?, ?, ?, ?)",
                (repo, branch, revision.id, revision.id if laid_out else None),
            )

    def set_laid_out(self, repo: str, branch: str) -> None:
        """The files of the head are all in place."""
        with self.transaction() as db:
            db.execute("update branch set laid_out = head where repo = ? and name = ?", (repo, branch))

    def revision(self, repo: str, id: str) -> Revision | None:
        """A stored revision."""
        with self._lock:
            row = self._db.execute(
                "select id, parent, title, created, tree from revision where repo = ? and id = ?", (repo, id)
            ).fetchone()
        if row is None:
            return None
        return Revision(row[0], row[1], row[2], row[3], {n: Entry(*e) for n, e in json.loads(row[4]).items()})

    def add_upload(self, repo: str, sha256: str) -> None:
        """Somebody who may write to ``repo`` has shown the content of ``sha256``."""
        with self.transaction() as db:
            db.execute("insert or ignore into upload values (?, ?)", (repo, sha256))

    def uploaded(self, repo: str, sha256: str) -> bool:
        """Whether ``add_upload`` was called for the pair."""
        return bool(self._rows("select 1 from upload where repo = ? and sha256 = ?", repo, sha256))

    def xet_hash(self, sha256: str) -> str | None:
        """The xet hash of a file that came by xet."""
        return next((row[0] for row in self._rows("select hash from xet where sha256 = ?", sha256)), None)

    def set_xet_hash(self, sha256: str, hash: str) -> None:
        """Remember the xet hash of a file."""
        with self.transaction() as db:
            db.execute("insert or replace into xet values (?, ?)", (sha256, hash))
