"""Who may see and change which repository of a folder Hub."""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hub.folder_errors import (
    AccessDenied,
    ConfigInvalid,
    GatedRefused,
    RepoMissing,
    TokenRefused,
)

ROLES = ("read", "write")


@dataclass(frozen=True)
class User:
    """The holder of a token; ``orgs`` are further namespaces besides ``name``."""

    name: str
    role: str
    orgs: tuple[str, ...] = ()

    def member(self, owner: str) -> bool:
        """Whether repositories under ``owner`` are the user's own."""
        return owner == self.name or owner in self.orgs


@dataclass(frozen=True)
class Marks:
    """What a repository's owner has said about its readers."""

    private: bool = False
    gated: bool = False
    allowed: tuple[str, ...] = ()


class Tokens:
    """The tokens a folder Hub knows. Without any, everybody may read public repositories and nobody may
    write.
    """

    def __init__(self, users: Mapping[str, User]) -> None:
        self._users = dict(users)

    @classmethod
    def load(cls, source: Path | Mapping[str, Any] | None) -> "Tokens":
        """From a YAML or JSON file, or a mapping: ``{token: {name: alice, role: write, orgs: [team]}}``."""
        if source is None:
            return cls({})
        document: Any = source
        if isinstance(source, Path):
            try:
                document = yaml.safe_load(source.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                raise ConfigInvalid(f"the tokens file {source} cannot be read as YAML or JSON") from None
        if not isinstance(document, Mapping):
            raise ConfigInvalid("the tokens file must map each token to {name, role, orgs}")
        return cls({str(token): _user(entry) for token, entry in document.items()})

    def identify(self, authorization: str | None) -> User | None:
        """The user behind an ``Authorization`` header; None without one; an unknown token is refused."""
        if not authorization:
            return None
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "bearer":
            for token, user in self._users.items():
                if hmac.compare_digest(token.encode(), given.strip().encode()):
                    return user
        raise TokenRefused("Invalid credentials in Authorization header")

    def revoke(self, token: str) -> None:
        """From now on ``token`` is unknown."""
        self._users.pop(token, None)


def _user(entry: Any) -> User:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ConfigInvalid("each token of the tokens file needs a `name`")
    role, orgs = entry.get("role", "read"), entry.get("orgs") or []
    if role not in ROLES:
        raise ConfigInvalid(f"the role of {entry['name']} must be one of {', '.join(ROLES)}")
    if not isinstance(orgs, list) or not all(isinstance(org, str) for org in orgs):
        raise ConfigInvalid(f"the orgs of {entry['name']} must be a list of names")
    return User(entry["name"], role, tuple(orgs))


class MarksFile:
    """``repos.yaml`` of the folder, read again whenever it changes: ``org/name: {private: true, gated: true,
    allowed: [bob]}``.

    Datasets are keyed ``datasets/org/name``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._marks: dict[str, Marks] = {}

    def get(self, key: str) -> Marks | None:
        """The marks of one repository, or None when the file does not speak of it."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._marks = None, {}
            return None
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._marks, self._stamp = self._read(), stamp
        return self._marks.get(key)

    def _read(self) -> dict[str, Marks]:
        try:
            document = yaml.safe_load(self._path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            raise ConfigInvalid(f"{self._path.name} cannot be read as YAML") from None
        if not isinstance(document, dict):
            raise ConfigInvalid(f"{self._path.name} must map repositories to marks")
        return {str(key): parse_marks(str(key), value) for key, value in document.items()}


def parse_marks(key: str, value: Any) -> Marks:
    """Marks from a mapping; anything not understood is refused rather than served in public."""
    if not isinstance(value, Mapping) or not set(value) <= {"private", "gated", "allowed"}:
        raise ConfigInvalid(f"the marks of {key} may only hold private, gated and allowed")
    allowed = value.get("allowed") or []
    if not isinstance(allowed, list) or not all(isinstance(name, str) for name in allowed):
        raise ConfigInvalid(f"`allowed` of {key} must be a list of user names")
    for field in ("private", "gated"):
        if not isinstance(value.get(field, False), bool):
            raise ConfigInvalid(f"`{field}` of {key} must be true or false")
    return Marks(value.get("private", False), value.get("gated", False), tuple(allowed))


def dump_marks(marks: Marks) -> str:
    """JSON form, read back by ``parse_marks``."""
    return json.dumps({"private": marks.private, "gated": marks.gated, "allowed": list(marks.allowed)})


def check_visible(user: User | None, owner: str, marks: Marks) -> None:
    """Refuse, without telling it from absence, a private repository of somebody else."""
    if marks.private and (user is None or not (user.member(owner) or user.name in marks.allowed)):
        raise RepoMissing(anonymous=user is None)


def check_files(user: User | None, owner: str, marks: Marks) -> None:
    """Refuse the files of a gated repository to those who have not been let in."""
    check_visible(user, owner, marks)
    if marks.gated and (user is None or not (user.member(owner) or user.name in marks.allowed)):
        raise GatedRefused(anonymous=user is None)


def check_write(user: User | None, owner: str) -> None:
    """Refuse a write by anybody but a member of ``owner`` with a write token."""
    if user is None:
        raise TokenRefused("a write needs a token of this Hub")
    if user.role != "write" or not user.member(owner):
        raise AccessDenied(f"the token of {user.name} may not write under {owner}")
