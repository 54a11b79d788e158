"""What a folder Hub answers when it cannot do as asked: each class is one status with the Hub's own error
headers.

FolderError
├── RepoMissing, GatedRefused, TokenRefused, AccessDenied    who is asking
├── RevisionMissing, EntryMissing, RouteMissing              what is asked for
├── RequestInvalid, RepoExists, ParentStale, RangeInvalid    how it is asked
└── ConfigInvalid                                            the operator's own files
"""

from typing import ClassVar


class FolderError(Exception):
    """Base: ``status`` is the HTTP status, ``error_code`` the Hub's ``X-Error-Code``."""

    status: ClassVar[int] = 500
    error_code: ClassVar[str | None] = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.http_status = self.status


class RepoMissing(FolderError):
    """No such repository, or not for the caller's eyes."""

    status = 404
    error_code = "RepoNotFound"

    def __init__(self, *, anonymous: bool = False) -> None:
        super().__init__("Repository not found")
        self.http_status = 401 if anonymous else 404


class GatedRefused(FolderError):
    """The repository is gated and the caller has not been let in."""

    status = 403
    error_code = "GatedRepo"

    def __init__(self, *, anonymous: bool) -> None:
        super().__init__("Access to this repository is restricted: ask its owner to be let in")
        self.http_status = 401 if anonymous else 403


class TokenRefused(FolderError):
    """The token is unknown, or one is needed."""

    status = 401


class AccessDenied(FolderError):
    """The token is good, but not for this."""

    status = 403


class RevisionMissing(FolderError):
    """No such branch or commit."""

    status = 404
    error_code = "RevisionNotFound"


class EntryMissing(FolderError):
    """No such file in that revision, or its content is gone from the folder."""

    status = 404
    error_code = "EntryNotFound"

    def __init__(self, message: str, commit: str) -> None:
        super().__init__(message)
        self.commit = commit


class RouteMissing(FolderError):
    """A part of the Hub's protocol that a folder Hub does not serve."""

    status = 404


class RequestInvalid(FolderError):
    """A body, name or header that does not follow the protocol."""

    status = 400


class RepoExists(FolderError):
    """A repository of that name is already there."""

    status = 409


class ParentStale(FolderError):
    """The branch has moved on since the caller looked."""

    status = 412


class RangeInvalid(FolderError):
    """The range asked for lies outside the file."""

    status = 416


class ConfigInvalid(FolderError):
    """The tokens file or ``repos.yaml`` cannot be understood."""

    status = 500
