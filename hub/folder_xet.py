"""The chunk store of a folder Hub: hf_xet's own local store, read for what was uploaded and rebuilt into
plain files.

Shard files (``xet/xorbs/shards/*.mdb``) start with a 48-byte header; then, for each file, a 48-byte record
(hash, u32 flags, u32 n, 8 unused), n segments of 48 bytes, n more where flag bit 31 is set, and where bit 30
is set one record that starts with the sha256. A record that starts with 32 bytes 0xFF ends the list. Hashes
have every group of 8 bytes reversed.
"""

import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hub.folder_errors import RequestInvalid

RECORD = 48
HAS_VERIFICATION = 1 << 31
HAS_METADATA = 1 << 30
TOKEN_SECONDS = 3600


class XetStore:
    """A folder that hf_xet clients on this machine write to and read from by ``local://``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._hashes: dict[str, str] = {}
        self._session: Any = None

    @property
    def url(self) -> str:
        """What token replies give as the address of the store."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return f"local://{self._folder}"

    def hash_of(self, sha256: str) -> str | None:
        """The xet hash of the uploaded file with this sha256."""
        with self._lock:
            if sha256 not in self._hashes:
                self._read_new_shards()
            return self._hashes.get(sha256)

    def _read_new_shards(self) -> None:
        shards = self._folder / "xet" / "xorbs" / "shards"
        for path in shards.glob("*.mdb"):
            if path.name not in self._seen:
                self._hashes.update(files_of_shard(path.read_bytes()))
                self._seen.add(path.name)

    def rebuild(self, hash: str, size: int, target: Path) -> None:
        """Write the file with this xet hash to ``target``."""
        import hf_xet

        with self._lock:
            if self._session is None:
                self._session = hf_xet.XetSession()
        expiry, token = int(time.time()) + TOKEN_SECONDS, "local"
        try:
            with self._session.new_file_download_group(
                endpoint=self.url,
                token=token,
                token_expiry_unix_secs=expiry,
            ) as group:
                group.start_download_file(hf_xet.XetFileInfo(hash, size), str(target))
        except (hf_xet.XetObjectNotFoundError, RuntimeError, OSError):
            raise RequestInvalid(
                "a file of this commit is not complete in the chunk store: upload it again"
            ) from None


def files_of_shard(data: bytes) -> Iterator[tuple[str, str]]:
    """(sha256, xet hash) of every file in one shard; a torn shard ends the list early."""
    position = RECORD
    while position + RECORD <= len(data) and data[position : position + 32] != b"\xff" * 32:
        xet_hash = _hash(data[position : position + 32])
        flags, segments = struct.unpack_from("<II", data, position + 32)
        position += RECORD * (1 + segments * (2 if flags & HAS_VERIFICATION else 1))
        if flags & HAS_METADATA:
            if position + RECORD > len(data):
                return
            yield _hash(data[position : position + 32]), xet_hash
            position += RECORD


def _hash(raw: bytes) -> str:
    return b"".join(raw[i : i + 8][::-1] for i in range(0, 32, 8)).hex()
