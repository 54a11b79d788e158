"""Signatures of webhooks, exactly as the Standard Webhooks specification has them."""

import base64
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

SECRET_MARK = "whsec_"  # noqa: S105  (a prefix, not a secret)
SECRET_BYTES = 32


def new_secret() -> str:
    """``whsec_`` and the base64 of 32 random bytes."""
    return SECRET_MARK + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def is_secret(text: str) -> bool:
    """Whether a caller's own secret has the form of the specification: 24 to 64 bytes in base64."""
    if not text.startswith(SECRET_MARK):
        return False
    try:
        return 24 <= len(base64.b64decode(text[len(SECRET_MARK) :], validate=True)) <= 64
    except ValueError:
        return False


def sign(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes | str) -> dict[str, str]:
    """The three headers of one try. ``timestamp`` is its unix second; one signature for each live secret."""
    text = body.decode() if isinstance(body, bytes) else body
    moment = datetime.fromtimestamp(timestamp, UTC)
    signatures = [Webhook(secret).sign(message_id, moment, text) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
