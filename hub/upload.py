"""A result into its repository: every finished file at once, all of them made visible by one commit.

Until the commit nothing shows. The commit carries ``mergery.json`` with the id of the job, so that after a
lost reply, or in a second attempt of the job, the head itself says whether the commit has happened.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from hub.errors import (
    Conflict,
    FileMissing,
    HubError,
    NameRefused,
    PermissionDenied,
    RepoNotFound,
    RepoNotOurs,
    RepoPublic,
    RequestRefused,
    RevisionNotFound,
    Unavailable,
)
from hub.names import SHA256, is_safe_path
from hub.session import quoted, translate, without_user
from hub.snapshot import Hub, Snapshot, check_repo

MANIFEST = "mergery.json"
MAX_MANIFEST = 64 << 20
KEPT_IN_MEMORY = 1 << 20
HARMLESS = (".gitattributes",)
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth")
MARKS = ("adapter_config.json", "bundle.json")
"""Files by which a repository is taken for something else than the model that lies in it."""
COMMIT_TRIES = 4
REFUSALS = {
    "Invalid metadata in README.md.": "the model card of {} was refused",
    "LFS batch API returned errors:": "an upload to {} was refused",
}
"""How errors of the client library begin that go on with the Hub's own words, and what they mean."""
UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError)
"""What the client library raises of an answer that is none of the Hub's, such as a proxy's page."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class CommitResult:
    """Where the result can be found."""

    sha: str
    url: str


class Push:
    """One result on its way to ``repo``; call ``prepare``, ``add_file`` for each file, then ``commit``.

    All three may be repeated after a failure or in a new process. A repository that holds anything but an
    earlier result of Mergery is refused unless ``overwrite``; a public one is refused when the result is to
    be ``private``.
    """

    def __init__(
        self,
        hub: Hub,
        repo: str,
        *,
        private: bool = True,
        revision: str = "main",
        job_id: str,
        overwrite: bool = False,
    ) -> None:
        check_repo(repo)
        if "/" not in repo:
            raise NameRefused(f"the target {repo} needs its owner: write owner/name")
        self._hub, self._repo, self._private, self._revision = hub, repo, private, revision
        self._job_id, self._overwrite = job_id, overwrite
        self._head: Snapshot | None = None
        self._former: Collection[str] = ()
        self._done: CommitResult | None = None
        self._files: dict[str, CommitOperationAdd] = {}

    def prepare(self) -> CommitResult | None:
        """Make the repository and the branch, or check those that are there; the result if this job has
        pushed before.
        """
        head = self._look()
        if head is None:
            self._create()
            head = self._look()
        if head is None:
            raise Unavailable(f"{self._repo} was made, but the Hub does not show it yet")
        manifest = self._manifest(head)
        self._head, self._former = head, _listed(manifest)
        if manifest.get("job_id") == self._job_id:
            self._done = self._result(head)
            return self._done
        self._check_private(head)
        strangers = [file.path for file in head.files if file.path not in HARMLESS]
        if strangers and not manifest and not self._overwrite:
            raise RepoNotOurs(
                f"{self._repo} already holds {strangers[0]} and no {MANIFEST}: "
                "choose another name, or say overwrite: true"
            )
        return None

    def _check_private(self, head: Snapshot) -> None:
        if self._private and not head.private:
            raise RepoPublic(
                f"{self._repo} is public and the result is to be private: "
                "choose another repository, or say private: false"
            )

    def _look(self) -> Snapshot | None:
        """The head of the branch; made from the default branch where the repository lacks it; None without
        repository.
        """
        try:
            try:
                return self._hub.pin(self._repo, self._revision)
            except RevisionNotFound:
                self._call(
                    lambda: self._hub.api.create_branch(self._repo, branch=self._revision, exist_ok=True)
                )
                return self._hub.pin(self._repo, self._revision)
        except RepoNotFound:
            return None

    def _create(self) -> None:
        try:
            self._call(lambda: self._hub.api.create_repo(self._repo, private=self._private))
        except Conflict:
            return
        except RepoNotFound:
            raise PermissionDenied(
                f"the token has no permission to make {self._repo}; use one with write access"
            ) from None

    def add_file(self, path_in_repo: str, local: Path) -> None:
        """Upload one file now; afterwards the local file is not needed any more. Content the Hub has is not
        sent again.
        """
        if self._head is None:
            self.prepare()
        if self._done is not None or path_in_repo in self._files:
            return
        _check_path(path_in_repo)
        content: str | bytes = str(local)
        if local.stat().st_size <= KEPT_IN_MEMORY:
            content = local.read_bytes()
        added = CommitOperationAdd(path_in_repo, content)
        self._preupload(added)
        if isinstance(content, str) and not added._is_uploaded:
            added.path_or_fileobj = local.read_bytes()
        self._files[path_in_repo] = added

    def add_uploaded(self, path_in_repo: str, sha256: str, size: int) -> None:
        """Count in a file that an earlier attempt has uploaded and that is not on this disk any more."""
        _check_path(path_in_repo)
        if not SHA256.match(sha256):
            raise NameRefused(f"{path_in_repo} needs its sha256")
        added = CommitOperationAdd(path_in_repo, b"")
        added.upload_info.sha256 = bytes.fromhex(sha256)
        added.upload_info.size = size
        added._upload_mode, added._should_ignore, added._is_uploaded = "lfs", False, True
        self._files[path_in_repo] = added

    def _preupload(self, added: CommitOperationAdd) -> None:
        def work() -> None:
            self._hub.api.preupload_lfs_files(
                self._repo, [added], revision=self._revision, free_memory=False, gitignore_content=""
            )

        self._call(work)

    def commit(
        self, message: str, small: Mapping[str, bytes], checkpoint: Callable[[], None] = lambda: None
    ) -> CommitResult:
        """Make everything visible at once, with the ``small`` files besides those added; the same result when
        called again.

        ``mergery.json`` among them gets the field ``job_id``. Files of an earlier result, and weights of
        anybody's, that lie in the repository and that this result does not have are removed by the same
        commit. Raises ``Conflict`` when somebody else has changed the branch since ``prepare``, and what
        ``checkpoint`` raises, right before the commit is sent, when there is to be none any more.
        """
        if self._head is None:
            self.prepare()
        if self._done is not None:
            return self._done
        self._check_private(self._hub.pin(self._repo, self._revision))  # merging may have taken hours
        documents = {**small, MANIFEST: self._with_job(small.get(MANIFEST, b"{}"))}
        last: HubError = Unavailable(f"{self._repo} took no commit")
        for number in range(COMMIT_TRIES):
            checkpoint()
            try:
                return self._post(message, documents)
            except HubError as error:
                last = error
                settled = self._settle()
                if settled is not None:
                    return settled
                again = error.retryable and not isinstance(error, Conflict) and number + 1 < COMMIT_TRIES
                if not again or not self._hub.session.pause(error, number):
                    break
        raise last

    def _post(self, message: str, documents: Mapping[str, bytes]) -> CommitResult:
        head = self._head
        if head is None:
            raise Unavailable(f"{self._repo} has not been looked at")
        for path in documents:
            _check_path(path)
        additions = [self._fresh(added) for path, added in self._files.items() if path not in documents]
        additions += [CommitOperationAdd(path, data) for path, data in documents.items()]
        written = {added.path_in_repo for added in additions}
        removals = [CommitOperationDelete(path) for path in _left_over(head, self._former, written)]
        info = self._call(
            lambda: self._hub.api.create_commit(
                self._repo,
                [*additions, *removals],
                commit_message=message,
                revision=self._revision,
                parent_commit=head.sha,
            ),
            tries=1,
        )
        self._done = CommitResult(info.oid, without_user(info.commit_url))
        return self._done

    def _fresh(self, added: CommitOperationAdd) -> CommitOperationAdd:
        added._is_committed = False
        return added

    def _settle(self) -> CommitResult | None:
        """After a failed commit: the head, if it turns out to be ours."""
        try:
            head = self._hub.pin(self._repo, self._revision)
            if self._manifest(head).get("job_id") == self._job_id:
                self._done = self._result(head)
        except HubError:
            return None
        return self._done

    def _manifest(self, head: Snapshot) -> dict[str, Any]:
        try:
            document = json.loads(self._hub.read_file(head, MANIFEST, MAX_MANIFEST))
        except FileMissing:
            return {}
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}

    def _with_job(self, manifest: bytes) -> bytes:
        document = json.loads(manifest)
        return json.dumps({**document, "job_id": self._job_id}, indent=2, ensure_ascii=False).encode() + b"\n"

    def _result(self, head: Snapshot) -> CommitResult:
        return CommitResult(head.sha, f"{self._hub.session.public}/{self._repo}/commit/{head.sha}")

    def _call(self, work: Callable[[], Result], tries: int = 3) -> Result:
        def guarded() -> Result:
            try:
                return work()
            except (RuntimeError, ValueError, OSError) as error:
                found = _refusal(error, self._repo) or translate(error, self._repo)
                if found is not None:
                    raise found from error
                if isinstance(error, FileNotFoundError):
                    raise
                passes = not isinstance(error, ValueError) or isinstance(error, UNREADABLE)
                kind = Unavailable if passes else RequestRefused
                raise kind(f"{self._repo} could not take an upload ({type(error).__name__})") from error

        return self._hub.session.call(self._repo, guarded, tries=tries)


def _refusal(error: Exception, repo: str) -> RequestRefused | None:
    text = str(error)
    for begin, meaning in REFUSALS.items():
        if text.startswith(begin):
            return RequestRefused(meaning.format(repo) + quoted(text.removeprefix(begin)))
    return None


def _check_path(path: str) -> None:
    if not is_safe_path(path):
        raise NameRefused(f"{path[:200]!r} is not a file name for a repository")


def _listed(manifest: Mapping[str, Any]) -> Collection[str]:
    files = manifest.get("files")
    return frozenset(files) if isinstance(files, dict) else ()


def _left_over(head: Snapshot, former: Collection[str], written: set[str]) -> list[str]:
    """What would be taken for a part of the new result: whatever the former one had, and weights."""
    kept = (file.path for file in head.files if file.path not in written)
    return [path for path in kept if path in former or ("/" not in path and path.endswith(WEIGHTS + MARKS))]
