"""API keys: ``mk_live_<8 characters>_<32 random><6 checksum>``. Only the SHA-256 of the secret is stored."""

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.orm import Session

from db import tokens
from db.models.base import new_id
from db.models.tenant import ApiKey
from db.session import storable
from jobs.errors import NotFound, RequestInvalid, ScopeMissing, Unauthenticated

SCOPES = ("merges:read", "merges:write", "webhooks", "keys", "admin")
"""``admin`` may do everything in its tenant."""

MARK = "mk_live_"
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX_LENGTH, BODY_LENGTH, CHECK_LENGTH = 8, 32, 6
SECRET_LENGTH = len(MARK) + PREFIX_LENGTH + 1 + BODY_LENGTH + CHECK_LENGTH
TOUCH_SECONDS = 60.0
LONGEST_NAME = 128


@dataclass(frozen=True)
class Caller:
    """Who is calling and what it may do."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    expires_at: datetime | None = field(default=None, compare=False)

    def may(self, scope: str) -> bool:
        """Whether the key has ``scope``, or ``admin``."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: str) -> None:
        """Raises ``ScopeMissing`` unless the key has ``scope``."""
        if not self.may(scope):
            raise ScopeMissing(scope, self.scopes)


def create_key(
    session: Session,
    tenant_id: str,
    name: str,
    scopes: Iterable[str],
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, never to be had again. Raises ``RequestInvalid`` for an unknown scope, or a
    name that is none.
    """
    check_name(name)
    wanted = sorted(set(scopes))
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        said = f"There is no scope {unknown[0]!r}" if unknown else "A key needs at least one scope"
        raise RequestInvalid(f"{said}; scopes are {', '.join(SCOPES)}.", "/scopes")
    prefix, secret = _new_secret()
    key = ApiKey(
        id=new_id("key"),
        tenant_id=tenant_id,
        name=name,
        prefix=prefix,
        hash=_hash(secret),
        scopes=wanted,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


def check_name(name: str, pointer: str = "/name") -> None:
    """Raises ``RequestInvalid`` for what cannot be the name of a key or a tenant."""
    if not 0 < len(name) <= LONGEST_NAME or storable(name) != name:
        raise RequestInvalid(f"The {pointer[1:]} must have 1 to {LONGEST_NAME} characters of text.", pointer)


def authenticate(session: Session, secret: str) -> Caller:
    """The caller behind ``secret``. Raises ``Unauthenticated``; a mistyped secret costs no query."""
    if not is_well_formed(secret):
        raise Unauthenticated("This is no API key of ours; a key looks like mk_live_… and has 55 characters.")
    known = tokens.key_by_prefix(session, secret[len(MARK) : len(MARK) + PREFIX_LENGTH], TOUCH_SECONDS)
    if known is None or not hmac.compare_digest(known.row.hash, _hash(secret)):
        raise Unauthenticated("There is no such API key.")
    return _let_in(session, known)


def caller_of(session: Session, key_id: str) -> Caller:
    """The caller behind a key's id, as a signed session names it. Raises ``Unauthenticated`` if it is
    over.
    """
    return _let_in(session, tokens.key_by_id(session, key_id, TOUCH_SECONDS))


def _let_in(session: Session, known: tokens.KnownKey | None) -> Caller:
    if known is None or not known.usable:
        raise Unauthenticated("The API key was revoked or has expired; create a new one.")
    key = known.row
    if known.unnoted:
        tokens.touch_key(session, key.id, TOUCH_SECONDS)
    return Caller(key.tenant_id, key.id, frozenset(key.scopes), key.expires_at)


def list_keys(session: Session, caller: Caller) -> Sequence[ApiKey]:
    """The tenant's keys, newest first."""
    return tokens.tenant_keys(session, caller.tenant_id)


def revoke_key(session: Session, caller: Caller, key_id: str) -> ApiKey:
    """Makes a key of the caller's tenant useless. Raises ``NotFound``."""
    key = tokens.tenant_key(session, caller.tenant_id, key_id)
    if key is None:
        raise NotFound("API key", key_id)
    tokens.revoke_key(session, key)
    return key


def is_well_formed(secret: str) -> bool:
    """Whether the text has the form of a key and its checksum fits."""
    return (
        len(secret) == SECRET_LENGTH
        and secret.isascii()
        and secret.startswith(MARK)
        and secret[-CHECK_LENGTH:] == _checksum(secret[:-CHECK_LENGTH])
    )


def _new_secret() -> tuple[str, str]:
    prefix = "".join(secrets.choice(ALPHABET) for _ in range(PREFIX_LENGTH))
    body = "".join(secrets.choice(ALPHABET) for _ in range(BODY_LENGTH))
    start = f"{MARK}{prefix}_{body}"
    return prefix, start + _checksum(start)


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(CHECK_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
