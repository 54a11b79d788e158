"""The HTTP half of a folder Hub: byte ranges, streamed bodies, error replies, signed upload links."""

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from hub.folder_errors import AccessDenied, EntryMissing, FolderError, RangeInvalid
from hub.folder_faults import Fault, Line, Stats
from hub.folder_store import header_end

CHUNK = 1 << 20
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
LINK_SECONDS = 6 * 3600
DIGITS = "[0-9]{0,4000}"
"""As many as Python makes a number of; the header may be longer."""


def error_response(error: FolderError) -> Response:
    """The Hub's own way to say no: status, ``X-Error-Code``, ``X-Error-Message`` and a JSON body."""
    message = str(error).encode("utf-8", "replace").decode()
    # A name that a caller sent may hold what no header can, such as the end of a line.
    plain = "".join(char if " " <= char <= "~" else "?" for char in message)
    headers = {"X-Error-Message": plain}
    if error.error_code:
        headers["X-Error-Code"] = error.error_code
    if isinstance(error, EntryMissing) and error.commit:
        headers["X-Repo-Commit"] = error.commit
    return JSONResponse({"error": message}, error.http_status, headers)


def fault_response(fault: Fault) -> Response:
    """The reply that a fault asks for."""
    headers = dict(fault.headers)
    if fault.code:
        headers["X-Error-Code"] = fault.code
    if fault.message:
        headers["X-Error-Message"] = fault.message
    return JSONResponse({"error": fault.message or "fault"}, fault.status or 500, headers)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Begin and end (exclusive) of a single byte range; None means the whole file.

    Several ranges at once, units other than bytes and numbers of thousands of digits are answered with the
    whole file, as the standard allows.
    """
    match = re.fullmatch(rf"bytes=({DIGITS})-({DIGITS})", (header or "").strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        begin, end = max(size - int(last), 0), size
    else:
        begin, end = int(first), min(int(last) + 1, size) if last else size
    if begin >= end:
        raise RangeInvalid(f"the range lies outside a file of {size} bytes")
    return begin, end


class FileResponse:
    """One file, or a range of it, streamed from the disk and counted by kind."""

    def __init__(
        self, path: Path, name: str, span: tuple[int, int] | None, headers: Mapping[str, str], stats: Stats
    ) -> None:
        self._size = path.stat().st_size
        self._begin, self._end = span or (0, self._size)
        self._status = 206 if span else 200
        self._path, self._name, self._headers, self._stats = path, name, dict(headers), stats
        self.fault: Fault | None = None
        self.line = Line()

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        if self.fault and self._status == 206:
            self._begin, self._end = self._begin + self.fault.shift, self._end + self.fault.shift
        headers = {
            **self._headers,
            "content-length": str(self._end - self._begin),
            "content-type": "application/octet-stream",
            "accept-ranges": "bytes",
        }
        if self._status == 206:
            headers["content-range"] = f"bytes {self._begin}-{self._end - 1}/{self._size}"
        raw = [(key.lower().encode(), value.encode("latin-1")) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": raw})
        stop = self._end
        if self.fault and self.fault.drop_after is not None:
            stop = min(stop, self._begin + self.fault.drop_after)
        first_weight = header_end(self._path) if self._name.endswith(".safetensors") else 0
        with self._path.open("rb") as file:
            for begin, end in _pieces(self._begin, stop):
                body = await to_thread.run_sync(os.pread, file.fileno(), end - begin, begin)
                self._count(begin, end, first_weight)
                await self.line.send(end - begin)
                if self.fault and self.fault.corrupt:
                    body = bytes(len(body))
                await send({"type": "http.response.body", "body": body, "more_body": end < self._end})
        if stop == self._begin == self._end:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _count(self, begin: int, end: int, first_weight: int) -> None:
        if not self._name.endswith(WEIGHTS):
            self._stats.count_bytes("text", end - begin)
            return
        self._stats.count_bytes("header", min(end, first_weight) - begin)
        self._stats.count_bytes("weight", end - max(begin, first_weight))


def _pieces(begin: int, end: int) -> Iterator[tuple[int, int]]:
    for start in range(begin, end, CHUNK):
        yield start, min(start + CHUNK, end)


@dataclass
class UploadLinks:
    """Upload addresses that carry their own permission, since clients send no token to them."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @classmethod
    def load(cls, path: Path) -> "UploadLinks":
        """With the secret kept in ``path``, so that links outlive a restart."""
        try:
            return cls(path.read_bytes())
        except FileNotFoundError:
            links = cls()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(links.secret)
            return links

    def sign(self, repo: str, sha256: str, size: int) -> dict[str, str]:
        """Query parameters of a link for this file into this repository."""
        expires = int(time.time()) + LINK_SECONDS
        return {
            "repo": repo,
            "size": str(size),
            "expires": str(expires),
            "signature": self._signature(repo, sha256, size, expires),
        }

    def check(self, sha256: str, query: Mapping[str, str]) -> tuple[str, int]:
        """Repository and size of a good link; anything else is refused."""
        try:
            repo, size, expires = query["repo"], int(query["size"]), int(query["expires"])
            good = hmac.compare_digest(self._signature(repo, sha256, size, expires), query["signature"])
        except (KeyError, ValueError, TypeError):
            good = False
        if not good or expires < time.time():
            raise AccessDenied("this upload link is not valid, or no longer")
        return repo, size

    def _signature(self, *parts: Any) -> str:
        message = "\n".join(str(part) for part in parts).encode()
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()
