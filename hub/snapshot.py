"""A repository pinned to one commit, and its small parts: the list of files, texts, safetensors headers."""

import hashlib
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import httpx2
from huggingface_hub import HfApi

from hub.errors import FileMissing, HashMismatch, NameRefused, RevisionNotFound, TooLarge, Unavailable
from hub.names import COMMIT, KINDS, SHA256, is_repo_part, is_safe_path
from hub.session import Patience, Session, json_of

MAX_FILES = 100_000
MAX_TEXT = 128 << 20
MAX_HEADER = 25_000_000
MAX_GROWN = 128_000_000
LENGTH_BYTES = 8
FIRST_BYTES = 1 << 18
"""How much of a file is fetched first where its header does not say how long it is; then twice as much."""
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/(\*|[0-9]{1,19})\Z")
THREADS = 8
DEFAULT_PATIENCE = 60.0
_Key = TypeVar("_Key", bound=Hashable)
Span = tuple[str, int, int]
"""A file, the first byte that is meant, and the first that is not."""


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a commit: ``sha256`` for large files, ``git_oid`` (git blob id) for all."""

    path: str
    size: int
    git_oid: str
    sha256: str | None = None
    xet_hash: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit; ``sha`` never changes its meaning, ``requested_revision`` may."""

    repo: str
    requested_revision: str | None
    sha: str
    private: bool
    gated: bool
    license: str | None
    tags: tuple[str, ...]
    files: tuple[RepoFile, ...]
    repo_type: str = "model"
    pipeline_tag: str | None = None
    library_name: str | None = None

    @property
    def label(self) -> str:
        """For messages: repository and commit."""
        return f"{self.repo}@{self.sha[:12]}"

    def file(self, name: str) -> RepoFile:
        """The file of that name; raises ``FileMissing``."""
        for file in self.files:
            if file.path == name:
                return file
        raise FileMissing(f"{name} does not exist in {self.label}")


class Hub:
    """A Hub as one token sees it. No answer is kept here: whatever is asked is asked of the Hub.

    ``patience`` is the longest pause in seconds before another try, ``sleep`` makes it.
    """

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        *,
        patience: float = DEFAULT_PATIENCE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.session = Session(endpoint, token, Patience(patience, sleep))
        self.api = HfApi(endpoint=self.session.endpoint, token=self.session.token)
        self.xet_is_away = False
        """One that has failed is not asked for other files: its client tries each for minutes."""

    def pin(self, repo: str, revision: str | None = None, repo_type: str = "model") -> Snapshot:
        """Ask what ``revision`` (branch, tag or commit; the default branch if None) of ``repo`` is now.

        Raises ``RepoNotFound``, ``Gated``, ``TokenInvalid``, ``RevisionNotFound``, ``NameRefused`` or a
        retryable error.
        """
        check_repo(repo)
        label = f"{repo}@{revision}" if revision else repo
        info = self._info(repo, revision, repo_type, label)
        sha = info.sha
        if not isinstance(sha, str) or not COMMIT.match(sha):
            raise Unavailable(f"the Hub gave no commit id for {label}")
        if revision and COMMIT.match(revision) and sha != revision:
            raise RevisionNotFound(f"{repo} does not have the commit {revision}")
        if info.gated:
            self.session.call(repo, lambda: self.api.auth_check(repo, repo_type=repo_type))
        return Snapshot(
            repo=repo,
            requested_revision=revision,
            sha=sha,
            private=bool(info.private),
            gated=bool(info.gated),
            license=_license(info),
            tags=tuple(tag for tag in info.tags or () if isinstance(tag, str)),
            files=self._tree(repo, sha, repo_type),
            repo_type=repo_type,
            pipeline_tag=_text(getattr(info, "pipeline_tag", None)),
            library_name=_text(getattr(info, "library_name", None)),
        )

    def _info(self, repo: str, revision: str | None, repo_type: str, label: str) -> Any:
        if repo_type not in KINDS:
            raise NameRefused(f"repo_type must be one of {', '.join(KINDS)}")
        ask = self.api.model_info if repo_type == "model" else self.api.dataset_info
        return self.session.call(label, lambda: ask(repo, revision=revision))

    def _tree(self, repo: str, sha: str, repo_type: str) -> tuple[RepoFile, ...]:
        start = f"{self.session.endpoint}/api/{repo_type}s/{repo}/tree/{sha}"
        url: str | None = f"{start}?recursive=true&expand=false"
        files: list[RepoFile] = []
        while url is not None:
            response = self.session.get(url, repo)
            rows = json_of(response, repo)
            if not isinstance(rows, list):
                raise Unavailable(f"the Hub's list of files of {repo} is not a list")
            files += [_repo_file(repo, row) for row in rows if _is_file(row)]
            if len(files) > MAX_FILES:
                raise TooLarge(f"{repo} has more than {MAX_FILES} files")
            url = _next_page(response, url)
        return tuple(files)

    def texts(self, snapshot: Snapshot, names: Iterable[str]) -> dict[str, bytes]:
        """The whole content of small files, checked against the commit."""
        return self._parallel(names, lambda name: self.read_file(snapshot, name, MAX_TEXT))

    def read_file(self, snapshot: Snapshot, name: str, max_bytes: int) -> bytes:
        """The whole content of one file, checked against the commit; ``TooLarge`` above ``max_bytes``."""
        file = snapshot.file(name)
        if file.size > max_bytes:
            raise TooLarge(f"{name} of {snapshot.label} has {file.size} bytes; at most {max_bytes} are read")
        label = f"{name} of {snapshot.label}"
        for _ in range(2):
            data = self._bytes(snapshot, name, 0, file.size, label)
            if matches(file, data):
                return data
        raise HashMismatch(f"{label} arrives with other content than the commit lists")

    def start(self, snapshot: Snapshot, name: str, count: int) -> bytes:
        """The first ``count`` bytes of one file; where that is all of it, checked against the commit."""
        file = snapshot.file(name)
        if count >= file.size:
            return self.read_file(snapshot, name, MAX_TEXT)
        return self._bytes(snapshot, name, 0, min(count, MAX_TEXT), f"{name} of {snapshot.label}")

    def spans(self, snapshot: Snapshot, wanted: Iterable[Span]) -> dict[Span, bytes]:
        """Small parts of files, by byte ranges."""

        def fetch(span: Span) -> bytes:
            name, begin, end = span
            return self._bytes(snapshot, name, begin, end, f"{name} of {snapshot.label}")

        return self._parallel(wanted, fetch)

    def headers(
        self,
        snapshot: Snapshot,
        names: Iterable[str],
        ends: Callable[[str, bytes], int | None] | None = None,
    ) -> dict[str, bytes]:
        """The first 8+n bytes of safetensors files, by byte ranges: never a byte of a tensor.

        A length prefix that cannot be true comes back as those 8 bytes alone, for the reader of headers to
        refuse. Headers of other files do not say how long they are: as much is fetched as ``ends`` needs to
        find, from a file's name and first bytes, where its header ends.
        """

        def fetch(name: str) -> bytes:
            if ends is None or name.endswith(".safetensors"):
                return self._header(snapshot, name)
            return self._until(snapshot, name, ends)

        return self._parallel(names, fetch)

    def _until(self, snapshot: Snapshot, name: str, ends: Callable[[str, bytes], int | None]) -> bytes:
        file, label = snapshot.file(name), f"{name} of {snapshot.label}"
        raw = self._bytes(snapshot, name, 0, min(FIRST_BYTES, file.size), label)
        while (end := ends(name, raw)) is None and len(raw) < min(file.size, MAX_GROWN):
            raw += self._bytes(snapshot, name, len(raw), min(2 * len(raw), file.size, MAX_GROWN), label)
        return raw[:end]

    def _header(self, snapshot: Snapshot, name: str) -> bytes:
        file, label = snapshot.file(name), f"{name} of {snapshot.label}"
        prefix = self._bytes(snapshot, name, 0, min(LENGTH_BYTES, file.size), label)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < LENGTH_BYTES or not 0 < length <= min(MAX_HEADER, file.size - LENGTH_BYTES):
            return prefix
        return prefix + self._bytes(snapshot, name, LENGTH_BYTES, LENGTH_BYTES + length, label)

    def _bytes(self, snapshot: Snapshot, name: str, begin: int, end: int, label: str) -> bytes:
        """Bytes ``begin`` to ``end``; a reply of another length counts as a failure that may pass."""
        if begin == end:
            return b""

        def work() -> bytes:
            with self.opened(snapshot, name, begin, end) as (response, at):
                return _read_exactly(response, begin - at, end - at, label)

        return self.session.call(label, work)

    @contextmanager
    def opened(
        self, snapshot: Snapshot, name: str, begin: int, end: int
    ) -> Iterator[tuple[httpx2.Response, int]]:
        """The reply to one request for bytes ``begin`` to ``end`` of a file, its body not read yet, and the
        place in the file where the body begins: 0 where the Hub sends all of it.

        Raises a retryable error where the Hub says that it sends something else. Not tried again.
        """
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"}
        with self.session.stream(self.url(snapshot, name), headers) as response:
            at = begin if response.status_code == 206 else 0
            if not _is_asked(response, begin, snapshot.file(name).size):
                raise Unavailable(
                    f"the Hub sent other bytes than were asked for of {name} of {snapshot.label}"
                )
            yield response, at

    def url(self, snapshot: Snapshot, name: str) -> str:
        """Where a file of the snapshot is served."""
        prefix = "datasets/" if snapshot.repo_type == "dataset" else ""
        return f"{self.session.endpoint}/{prefix}{snapshot.repo}/resolve/{snapshot.sha}/{quote(name)}"

    def _parallel(self, names: Iterable[_Key], fetch: Callable[[_Key], bytes]) -> dict[_Key, bytes]:
        wanted = list(dict.fromkeys(names))
        if not wanted:
            return {}
        with ThreadPoolExecutor(min(THREADS, len(wanted)), thread_name_prefix="hub-read") as pool:
            return dict(zip(wanted, pool.map(fetch, wanted), strict=True))


def check_repo(repo: str) -> None:
    """Refuse what is not ``owner/name`` or a bare ``name`` as the Hub has them."""
    parts = repo.split("/")
    if len(parts) > 2 or not all(is_repo_part(part) for part in parts):
        raise NameRefused(f"{repo[:200]!r} is not a Hub repository: write owner/name")


def matches(file: RepoFile, data: bytes) -> bool:
    """Whether ``data`` is the content that the commit lists."""
    if len(data) != file.size:
        return False
    if file.sha256:
        return hashlib.sha256(data).hexdigest() == file.sha256
    blob = b"blob %d\0" % len(data) + data
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == file.git_oid


def _is_asked(response: httpx2.Response, begin: int, size: int) -> bool:
    """Whether a reply is said to be the file of this size: all of it, or for 206 its bytes from ``begin``."""
    packed = response.headers.get("content-encoding", "identity") != "identity"
    if response.status_code != 206:
        return packed or response.headers.get("content-length") in (None, str(size))
    stated = CONTENT_RANGE.match(response.headers.get("content-range", ""))
    return not packed and stated is not None and int(stated[1]) == begin and stated[2] in ("*", str(size))


def _read_exactly(response: httpx2.Response, begin: int, end: int, label: str) -> bytes:
    """Bytes ``begin`` to ``end`` of a body; what follows is not waited for."""
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) >= end:
            break
    if len(data) < end:
        raise Unavailable(f"{label} ended early: {len(data)} bytes came of {end}")
    return bytes(data[begin:end])


def _is_file(row: Any) -> bool:
    return isinstance(row, dict) and row.get("type") == "file"


def _repo_file(repo: str, row: dict[str, Any]) -> RepoFile:
    path, size, oid, large = row.get("path"), row.get("size"), row.get("oid"), row.get("lfs")
    sha256 = large.get("oid") if isinstance(large, dict) else None
    if not isinstance(path, str) or not is_safe_path(path):
        raise NameRefused(f"{repo} lists a file whose name is not safe: {str(path)[:200]!r}")
    if not isinstance(size, int) or size < 0 or not isinstance(oid, str) or not COMMIT.match(oid):
        raise Unavailable(f"the Hub's list of files of {repo} is not complete at {path}")
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.match(sha256)):
        raise Unavailable(f"the Hub lists no sha256 for {path} of {repo}")
    xet = row.get("xetHash")
    return RepoFile(path, size, oid, sha256, xet if isinstance(xet, str) and SHA256.match(xet) else None)


def _next_page(response: httpx2.Response, url: str) -> str | None:
    link = response.links.get("next", {}).get("url")
    if link is None:
        return None
    following = urljoin(url, link)
    if urlsplit(following)[:2] != urlsplit(url)[:2]:
        raise Unavailable(
            "the Hub's next page of files lies on another server, which would be given the token"
        )
    return following


def _license(info: Any) -> str | None:
    card: Any = getattr(info, "card_data", None) or {}
    value = card.get("license")
    if value == "other" and isinstance(card.get("license_name"), str):
        value = card.get("license_name")
    if isinstance(value, list):
        value = ", ".join(item for item in value if isinstance(item, str))
    if isinstance(value, str) and value.strip():
        return value.strip()[:200]
    tags = (tag for tag in info.tags or () if isinstance(tag, str))
    return next((tag.removeprefix("license:")[:200] for tag in tags if tag.startswith("license:")), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= 100 else None
