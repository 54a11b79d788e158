"""Seals what must be kept secret but read again: Hub tokens and webhook secrets (AES-256-GCM)."""

import hashlib
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from jobs.errors import CredentialUnreadable

NONCE_BYTES = 12
KEY_BYTES = 32
PURPOSE = b"mergery sealed secrets v1"


@dataclass(frozen=True)
class Sealed:
    """A secret as it lies in the database: which key, and nonce + ciphertext + tag."""

    key_id: str
    ciphertext: bytes


class Keyring:
    """Keys derived from the service's secret by HKDF-SHA256; ``older`` secrets still open what they
    sealed.
    """

    def __init__(self, secret: str, older: tuple[str, ...] = ()) -> None:
        derived = [_derive(each) for each in (secret, *older)]
        self.key_id = _key_id(derived[0])
        self._keys = {_key_id(key): AESGCM(key) for key in derived}

    def seal(self, text: str, *about: str) -> Sealed:
        """Encrypts ``text`` bound to ``about`` (tenant id, row id): it opens only with the same ones."""
        nonce = os.urandom(NONCE_BYTES)
        body = self._keys[self.key_id].encrypt(nonce, text.encode(), _aad(about))
        return Sealed(self.key_id, nonce + body)

    def open(self, sealed: Sealed, *about: str) -> str:
        """The text again; raises ``CredentialUnreadable`` if the key is gone or the bytes were moved or
        changed.
        """
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise CredentialUnreadable(
                f"A secret of {about[-1]} was sealed with key {sealed.key_id}, which is not configured; "
                "store it again."
            )
        try:
            nonce, body = sealed.ciphertext[:NONCE_BYTES], sealed.ciphertext[NONCE_BYTES:]
            return key.decrypt(nonce, body, _aad(about)).decode()
        except InvalidTag:
            raise CredentialUnreadable(f"A secret of {about[-1]} was altered; store it again.") from None


def _derive(secret: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=PURPOSE).derive(secret.encode())


def _key_id(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:12]


def _aad(about: tuple[str, ...]) -> bytes:
    return "\0".join(about).encode()
