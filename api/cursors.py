"""Opaque list cursors: a keyset position signed together with the filters it belongs to."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.errors import Problem

_MAC_BYTES = 16


@dataclass(frozen=True)
class Position:
    """The last row of a page: the next page begins after it."""

    created_at: datetime
    id: str


@dataclass(frozen=True)
class Cursors:
    """Writes and reads cursors with one secret key."""

    key: bytes

    def write(self, position: Position, filters: Mapping[str, Any]) -> str:
        """A URL-safe string that only works with the same ``filters``."""
        text = json.dumps([position.created_at.isoformat(), position.id]).encode()
        return base64.urlsafe_b64encode(self._mac(text, filters) + text).decode().rstrip("=")

    def read(self, cursor: str, filters: Mapping[str, Any]) -> Position:
        """The position in ``cursor``; raises a 400 problem when it was changed or made for other filters."""
        try:
            raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        mac, text = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(text, filters)):
            raise Problem("cursor_invalid", "use next_cursor exactly as given, with the same filters")
        created_at, row_id = json.loads(text)
        return Position(datetime.fromisoformat(created_at), row_id)

    def _mac(self, text: bytes, filters: Mapping[str, Any]) -> bytes:
        bound = json.dumps(filters, sort_keys=True, default=str).encode()
        return hmac.digest(self.key, hashlib.sha256(bound).digest() + text, "sha256")[:_MAC_BYTES]
