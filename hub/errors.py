"""Everything that can go wrong between Mergery and a Hub, as one tree.

HubError
├── RepoNotFound, Gated, TokenInvalid, PermissionDenied      who may see or write what
├── RevisionNotFound, FileMissing, NameRefused, TooLarge     what is there
├── RateLimited, Unavailable, HashMismatch, Tainted          worth another try
├── Conflict, RepoNotOurs, RepoPublic, RequestRefused        pushing
└── Interrupted, DiskFull                                    on this side
"""

from typing import ClassVar


class HubError(Exception):
    """Base: ``code`` is stable, ``retryable`` says whether the same call may succeed later, ``str`` is one
    sentence.
    """

    code: ClassVar[str] = "hub_error"
    retryable: ClassVar[bool] = False


class RepoNotFound(HubError):
    """No such repository, or a private one that the token may not see."""

    code = "repo_not_found"


class Gated(HubError):
    """The repository is gated and the token's owner has not been let in."""

    code = "gated"


class TokenInvalid(HubError):
    """The token is unknown or revoked."""

    code = "token_invalid"


class PermissionDenied(HubError):
    """The token is good, but not for this."""

    code = "permission_denied"


class RevisionNotFound(HubError):
    """The repository has no such branch, tag or commit."""

    code = "revision_not_found"


class FileMissing(HubError):
    """The revision has no such file."""

    code = "file_missing"


class NameRefused(HubError):
    """A repository, revision or file name that could leave its folder."""

    code = "name_refused"


class TooLarge(HubError):
    """More files or bytes than this call accepts."""

    code = "too_large"


class RateLimited(HubError):
    """The Hub asked to come back later than the caller can wait; ``seconds`` says when, if it did."""

    code = "hub_rate_limited"
    retryable = True

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


class Unavailable(HubError):
    """The Hub does not answer, or not sensibly, after several tries."""

    code = "hub_unavailable"
    retryable = True


class HashMismatch(HubError):
    """What arrived is not what the commit lists, twice."""

    code = "hash_mismatch"
    retryable = True


class Tainted(HubError):
    """Weights turned out wrong after some of them were used: what was made of them is thrown away."""

    code = "download_tainted"
    retryable = True


class Conflict(HubError):
    """The target repository changed while the result was on its way."""

    code = "conflict"
    retryable = True


class RepoNotOurs(HubError):
    """The target repository holds something that Mergery did not put there."""

    code = "repo_not_ours"


class RepoPublic(HubError):
    """The result is to be private, but the target repository is public."""

    code = "repo_public"


class RequestRefused(HubError):
    """The Hub understood the request and will not do it, for a reason that another try does not change."""

    code = "hub_refused"


class Interrupted(HubError):
    """The caller's ``should_stop`` said so."""

    code = "stopped"


class DiskFull(HubError):
    """There is not enough room for a download."""

    code = "disk_full"
