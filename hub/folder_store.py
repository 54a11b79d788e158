"""Repositories as plain folders with a history: trees, revisions, objects, commits.

``root/<owner>/<name>`` holds the files of ``main`` as anybody would lay them out;
``root/datasets/<owner>/<name>`` the same for data sets. Whatever the operator changes there by hand becomes a
revision of its own the next time somebody looks. ``root/.mergery-hub`` holds the state and, as hard links,
the content of committed files, so that old revisions stay readable.
"""

import hashlib
import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.folder_access import Marks, MarksFile, dump_marks, parse_marks
from hub.folder_errors import (
    EntryMissing,
    ParentStale,
    RepoExists,
    RepoMissing,
    RequestInvalid,
    RevisionMissing,
)
from hub.folder_files import (
    Entry,
    Stamp,
    Tree,
    blob_oid,
    entry_of,
    hash_files,
    keep,
    large_entry,
    link_into,
    remove_empty_parents,
    scan,
    stamp_of,
    write_once,
)
from hub.folder_state import FolderState, Revision
from hub.folder_xet import XetStore
from hub.names import COMMIT, is_repo_part

STATE_FOLDER = ".mergery-hub"
MAIN = "main"
CACHED_REVISIONS = 64
OBJECTS = "objects"


@dataclass(frozen=True)
class Repo:
    """The name of a repository; ``key`` is its folder below the root."""

    kind: str
    owner: str
    name: str

    @property
    def id(self) -> str:
        """As the Hub writes it."""
        return f"{self.owner}/{self.name}"

    @property
    def key(self) -> str:
        """Folder below the root, and the key in ``repos.yaml``."""
        return self.id if self.kind == "model" else f"datasets/{self.id}"


@dataclass(frozen=True)
class Change:
    """One line of a commit: new small content, a large file by digest, or (neither) a deletion of a file or
    folder.
    """

    path: str
    content: bytes | None = None
    sha256: str | None = None
    size: int = 0
    folder: bool = False


class FolderStore:
    """Everything a folder Hub knows, without HTTP."""

    def __init__(self, root: Path, *, now: Callable[[], float] = time.time) -> None:
        self.root = root.resolve()
        self.home = self.root / STATE_FOLDER
        self.home.mkdir(parents=True, exist_ok=True)
        self._state = FolderState(self.home / "state.sqlite")
        self._marks = MarksFile(self.root / "repos.yaml")
        self.xet = XetStore(self.home / "xet")
        self._now = now
        self._guard = threading.Lock()
        self._locks: dict[str, AbstractContextManager[Any]] = {}
        self._cache: OrderedDict[tuple[str, str], Revision] = OrderedDict()

    def close(self) -> None:
        """Let go of the state file."""
        self._state.close()

    def _lock(self, repo: Repo) -> AbstractContextManager[Any]:
        with self._guard:
            return self._locks.setdefault(repo.key, threading.RLock())

    def repo(self, kind: str, owner: str, name: str) -> Repo:
        """The repository of that name; a name that could be a path is as unknown as any other."""
        if not (is_repo_part(owner) and is_repo_part(name)) or (kind == "model" and owner == "datasets"):
            raise RepoMissing
        return Repo(kind, owner, name)

    def folder(self, repo: Repo) -> Path:
        """Where the files of ``main`` lie."""
        return self.root / repo.key

    def exists(self, repo: Repo) -> bool:
        """Whether there is such a repository."""
        return self.folder(repo).is_dir()

    def marks(self, repo: Repo) -> Marks:
        """Who may read it: ``repos.yaml`` first, else what was said when it was made."""
        from_file = self._marks.get(repo.key)
        if from_file is not None:
            return from_file
        stored = self._state.marks(repo.key)
        return parse_marks(repo.key, json.loads(stored)) if stored else Marks()

    def mark(self, repo: Repo, marks: Marks) -> None:
        """Set the marks that hold where ``repos.yaml`` is silent."""
        self._state.set_marks(repo.key, dump_marks(marks))

    def create(self, repo: Repo, *, private: bool) -> None:
        """Make an empty repository. The marks come first, so that no crash leaves it public."""
        with self._lock(repo):
            if self.exists(repo):
                raise RepoExists(f"You already created this {repo.kind} repo")
            self.mark(repo, Marks(private=private))
            self.folder(repo).mkdir(parents=True)

    def branches(self, repo: Repo) -> dict[str, str]:
        """Branch names and heads, ``main`` brought up to date with the folder."""
        self.head(repo)
        return self._state.branches(repo.key)

    def create_branch(self, repo: Repo, name: str, start: str | None) -> None:
        """A new branch at ``start`` (a branch or commit; ``main`` by default)."""
        with self._lock(repo):
            if name in self.branches(repo) or COMMIT.match(name):
                raise RepoExists(f"Reference already exists: {name}")
            self._state.commit(repo.key, name, self.resolve(repo, start or MAIN), laid_out=True)

    def resolve(self, repo: Repo, revision: str) -> Revision:
        """The revision behind a branch name or a full commit id."""
        if COMMIT.match(revision):
            return self._revision(repo, revision)
        if revision == MAIN:
            return self.head(repo)
        head = self._state.branches(repo.key).get(revision)
        if head is None:
            raise RevisionMissing(f"Invalid rev id: {revision}")
        return self._revision(repo, head)

    def _revision(self, repo: Repo, id: str) -> Revision:
        with self._guard:
            known = self._cache.get((repo.key, id))
            if known is None:
                known = self._state.revision(repo.key, id)
                if known is None:
                    raise RevisionMissing(f"Invalid rev id: {id}")
                self._cache[repo.key, id] = known
                if len(self._cache) > CACHED_REVISIONS:
                    self._cache.popitem(last=False)
            return known

    def head(self, repo: Repo) -> Revision:
        """The head of ``main``, after the folder as it is now."""
        with self._lock(repo):
            self._finish_layout(repo)
            tree = self._folder_tree(repo)
            id = self._state.branches(repo.key).get(MAIN)
            if id is not None and (known := self._revision(repo, id)).tree == tree:
                return known
            revision = self._new_revision(id, "Files in the folder", "", tree)
            self._state.commit(repo.key, MAIN, revision, laid_out=True)
            return revision

    def _new_revision(self, parent: str | None, title: str, description: str, tree: Tree) -> Revision:
        entries = [[name, entry.size, entry.etag] for name, entry in sorted(tree.items())]
        body = json.dumps([parent, title, description, entries], separators=(",", ":"))
        id = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()
        return Revision(id, parent, title, self._now(), tree)

    def _folder_tree(self, repo: Repo) -> Tree:
        folder, known = self.folder(repo), self._state.digests(repo.key)
        stamps = scan(folder)
        stale = [name for name, stamp in stamps.items() if name not in known or known[name][0] != stamp]
        if stale:
            fresh = hash_files(folder, stale)
            self._state.remember(repo.key, {name: (stamps[name], fresh[name]) for name in stale})
            return {name: fresh[name] if name in fresh else known[name][1] for name in stamps}
        return {name: known[name][1] for name in stamps}

    def locate(self, repo: Repo, revision: Revision, path: str) -> tuple[Entry, Path]:
        """The entry and a file that holds exactly its content; a digest is never taken on trust for a changed
        file.
        """
        entry = revision.tree.get(path)
        if entry is None:
            raise EntryMissing("Entry not found", revision.id)
        for folder, key, name in (
            (self.home / OBJECTS, OBJECTS, self._object(entry.etag).name),
            (self.folder(repo), repo.key, path),
        ):
            place = self._object(entry.etag) if key == OBJECTS else folder / name
            if self._holds(key, name, place, entry, as_name=path):
                return entry, place
        raise EntryMissing(f"The content of {path} at this revision is no longer in the folder", revision.id)

    def _holds(self, key: str, name: str, place: Path, entry: Entry, *, as_name: str) -> bool:
        try:
            stamp = stamp_of(place)
        except OSError:
            return False
        if stamp.size != entry.size or not place.resolve().is_relative_to(self._inside(key)):
            return False
        known = self._state.digest(key, name)
        if known is None or known[0] != stamp:
            known = (stamp, entry_of(place, as_name))
            self._state.remember(key, {name: known})
        return known[1].etag == entry.etag

    def _inside(self, key: str) -> Path:
        return (self.home / OBJECTS if key == OBJECTS else self.root / key).resolve()

    def _object(self, etag: str) -> Path:
        return self.home / OBJECTS / etag[:2] / etag

    def has_large(self, repo: Repo, sha256: str) -> bool:
        """Whether this repository's writers have shown this content and it is still here."""
        return self._state.uploaded(repo.key, sha256) and self._object(sha256).is_file()

    def temporary(self) -> Path:
        """A new file name on the same disk as the objects."""
        folder = self.home / "incoming"
        folder.mkdir(exist_ok=True)
        return folder / uuid.uuid4().hex

    def accept_large(self, repo: str, temporary: Path, sha256: str) -> None:
        """Take an uploaded file whose digest has been checked."""
        keep(temporary, self._object(sha256))
        self._know_object(sha256, large_entry(self._object(sha256).stat().st_size, sha256))
        self._state.add_upload(repo, sha256)

    def _know_object(self, etag: str, entry: Entry) -> None:
        self._state.remember(OBJECTS, {etag: (stamp_of(self._object(etag)), entry)})

    def commit(
        self,
        repo: Repo,
        branch: str,
        title: str,
        description: str,
        parent: str | None,
        changes: Iterable[Change],
    ) -> Revision:
        """One new revision out of ``changes``: visible whole, or not at all, whatever happens in between."""
        with self._lock(repo):
            base = self.resolve(repo, branch)
            if COMMIT.match(branch):
                raise RequestInvalid("a commit goes to a branch")
            if parent is not None and parent != base.id:
                raise ParentStale("A commit has happened since. Please refresh and try again.")
            tree = dict(base.tree)
            for change in changes:
                self._apply(repo, tree, change)
            _check_layout(tree)
            revision = self._new_revision(base.id, title, description, tree)
            self._preserve(repo, base.tree, tree)
            self._state.commit(repo.key, branch, revision, laid_out=branch != MAIN)
            if branch == MAIN:
                self._finish_layout(repo)
            return revision

    def _apply(self, repo: Repo, tree: Tree, change: Change) -> None:
        if change.content is not None:
            entry = Entry(len(change.content), blob_oid(change.content), None)
            write_once(self._object(entry.oid), change.content)
            tree[change.path] = entry
        elif change.sha256 is not None:
            tree[change.path] = self._large(repo, change, tree)
        elif change.folder:
            for name in [name for name in tree if name.startswith(change.path.rstrip("/") + "/")]:
                del tree[name]
        else:
            tree.pop(change.path, None)

    def _large(self, repo: Repo, change: Change, tree: Tree) -> Entry:
        sha256 = change.sha256 or ""
        entry = large_entry(change.size, sha256)
        if entry in tree.values() or (
            self.has_large(repo, sha256) and self._object(sha256).stat().st_size == change.size
        ):
            return entry
        hash = self.xet.hash_of(sha256)
        if hash is None:
            raise RequestInvalid(f"the content of {change.path} was not uploaded before the commit")
        if not self._object(sha256).is_file():
            self._rebuild(hash, entry)
        self._state.set_xet_hash(sha256, hash)
        self._state.add_upload(repo.key, sha256)
        return entry

    def _rebuild(self, hash: str, entry: Entry) -> None:
        temporary = self.temporary()
        try:
            self.xet.rebuild(hash, entry.size, temporary)
            with temporary.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    raise RequestInvalid("a file of this commit has another sha256 than it claims")
            keep(temporary, self._object(entry.etag))
            self._know_object(entry.etag, entry)
        finally:
            temporary.unlink(missing_ok=True)

    def xet_hash(self, entry: Entry) -> str | None:
        """The xet hash under which clients on this machine can fetch a large file."""
        return self._state.xet_hash(entry.sha256) if entry.sha256 else None

    def _preserve(self, repo: Repo, old: Tree, new: Tree) -> None:
        """Before files of the folder are replaced or removed, keep their content for the old revision."""
        for path, entry in old.items():
            source = self.folder(repo) / path
            if new.get(path) != entry and source.is_file() and not self._object(entry.etag).exists():
                link_into(source, self._object(entry.etag))
                self._know_object(entry.etag, entry)

    def _finish_layout(self, repo: Repo) -> None:
        """Lay out the head of ``main`` in the folder; done again from the start if it was interrupted."""
        if not self._state.unfinished(repo.key, MAIN):
            return
        folder = self.folder(repo)
        target = self._revision(repo, self._state.branches(repo.key)[MAIN]).tree
        present = self._folder_tree(repo)
        for name in present.keys() - target.keys():
            (folder / name).unlink(missing_ok=True)
            remove_empty_parents(folder / name, folder)
        known: dict[str, tuple[Stamp, Entry]] = {}
        for name, entry in target.items():
            if present.get(name) != entry:
                link_into(self._object(entry.etag), folder / name)
                known[name] = (stamp_of(folder / name), entry)
        self._state.remember(repo.key, known)
        self._state.set_laid_out(repo.key, MAIN)

    def warm(self) -> None:
        """Hash whatever is not hashed yet, so that the first caller does not wait for it."""
        for repo in self.repos():
            self.head(repo)

    def repos(self) -> list[Repo]:
        """Every repository of the folder."""
        found = [("model", path) for path in self.root.glob("*/*") if path.parent.name != "datasets"]
        found += [("dataset", path) for path in self.root.glob("datasets/*/*")]
        return [
            Repo(kind, path.parent.name, path.name)
            for kind, path in sorted(found)
            if path.is_dir() and is_repo_part(path.parent.name) and is_repo_part(path.name)
        ]


def _check_layout(tree: Tree) -> None:
    folders = {path[:index] for path in tree for index, char in enumerate(path) if char == "/"}
    for both in folders & tree.keys():
        raise RequestInvalid(f"{both} cannot be both a file and a folder")


def header_end(path: Path) -> int:
    """Bytes of a safetensors file that are not weights: the length prefix and the header (0 where it is not
    one).
    """
    with path.open("rb") as file:
        prefix = file.read(8)
    if len(prefix) < 8:
        return len(prefix)
    return min(8 + int.from_bytes(prefix, "little"), path.stat().st_size)
