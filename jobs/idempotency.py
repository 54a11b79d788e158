"""The same key, the same answer. The kept answer is written in the transaction of what it answers.

Use: ``begin`` first thing in the transaction; a ``Replay`` is the answer; otherwise do the work and
``finish``. Nothing is kept when the transaction is rolled back, so a refused request may be repeated.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db import idempotency
from jobs.errors import IdempotencyInProgress, IdempotencyMismatch, RequestInvalid

KEEP_SECONDS = 72 * 3600.0
LONGEST_KEY = 255


@dataclass(frozen=True)
class Replay:
    """The answer that the first request with the key got."""

    status: int
    body: dict[str, Any]


def request_hash(method: str, path: str, body: Any) -> str:
    """sha256 (hex) of method, path and the JSON body with sorted keys; bytes are taken as they are."""
    content = (
        body if isinstance(body, bytes) else json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    )
    return hashlib.sha256(b"\n".join([method.upper().encode(), path.encode(), content])).hexdigest()


def begin(session: Session, tenant_id: str, key: str, hashed: str) -> Replay | None:
    """Holds the key until the transaction ends; a ``Replay`` if it was answered before.

    Raises ``IdempotencyInProgress`` while another transaction holds it, ``IdempotencyMismatch`` when it
    answered another request, ``RequestInvalid`` when it is empty, too long or not printable ASCII.
    """
    if not 0 < len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise RequestInvalid(f"Idempotency-Key must be 1 to {LONGEST_KEY} printable ASCII characters.")
    if not idempotency.try_lock(session, tenant_id, key):
        raise IdempotencyInProgress(key)
    row = idempotency.find(session, tenant_id, key, KEEP_SECONDS)
    if row is None:
        return None
    if row.request_hash != hashed:
        raise IdempotencyMismatch(key)
    return Replay(row.status, row.body)


def finish(
    session: Session, tenant_id: str, key: str, hashed: str, status: int, body: dict[str, Any]
) -> None:
    """Keeps the answer with the work it answers."""
    idempotency.put(session, tenant_id, key, hashed, status, body)


def prune(session: Session) -> int:
    """Forgets answers older than three days; says how many."""
    return idempotency.prune(session, KEEP_SECONDS)
