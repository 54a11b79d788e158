"""The same key, the same answer. The kept answer is written in the transaction of what it answers.

Use: ``reserve`` and commit; a ``Replay`` is the answer; otherwise do what takes long with no transaction
open, then the work and ``finish`` in one transaction, or ``release`` when the request is refused, so that it
may be repeated. Whoever dies in between holds the key until its lease is over; should it come back after
that, its ``finish`` fails and takes the work with it.
"""

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db import idempotency
from jobs.errors import IdempotencyInProgress, IdempotencyMismatch, RequestInvalid

KEEP_SECONDS = 72 * 3600.0
LEASE_SECONDS = 60.0
LONGEST_KEY = 255


@dataclass(frozen=True)
class Replay:
    """The answer that the first request with the key got."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Reservation:
    """A key held by one request that is being answered."""

    tenant_id: str
    key: str
    owner: str


def request_hash(method: str, path: str, body: Any) -> str:
    """sha256 (hex) of method, path and the JSON body with sorted keys; bytes are taken as they are."""
    content = (
        body if isinstance(body, bytes) else json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    )
    return hashlib.sha256(b"\n".join([method.upper().encode(), path.encode(), content])).hexdigest()


def reserve(
    session: Session, tenant_id: str, key: str, hashed: str, lease_seconds: float = LEASE_SECONDS
) -> Reservation | Replay:
    """Holds a new key for ``lease_seconds``, or gives the ``Replay`` of one that was answered before.

    Raises ``IdempotencyInProgress`` while another request holds it, ``IdempotencyMismatch`` when it was
    used with another request, ``RequestInvalid`` when it is empty, too long or not printable ASCII.
    """
    if not 0 < len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise RequestInvalid(f"Idempotency-Key must be 1 to {LONGEST_KEY} printable ASCII characters.")
    held = Reservation(tenant_id, key, secrets.token_hex(8))
    if idempotency.reserve(
        session, tenant_id, key, hashed, held.owner, lease_seconds=lease_seconds, keep_seconds=KEEP_SECONDS
    ):
        return held
    row = idempotency.find(session, tenant_id, key, KEEP_SECONDS)
    if row is None:
        raise IdempotencyInProgress(key)  # it was released a moment ago
    if row.request_hash != hashed:
        raise IdempotencyMismatch(key)
    if row.owner is not None:
        raise IdempotencyInProgress(key)
    return Replay(row.status, row.body)


def finish(session: Session, held: Reservation, status: int, body: dict[str, Any]) -> None:
    """Keeps the answer with the work it answers. Raises ``IdempotencyInProgress`` when the key was lost."""
    if not idempotency.finish(session, held.tenant_id, held.key, held.owner, status, body):
        raise IdempotencyInProgress(held.key)


def release(session: Session, held: Reservation) -> None:
    """Frees the key of a request that was refused."""
    idempotency.release(session, held.tenant_id, held.key, held.owner)


def prune(session: Session) -> int:
    """Forgets answers older than three days; says how many."""
    return idempotency.prune(session, KEEP_SECONDS)
