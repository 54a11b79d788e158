"""What comes in: bodies of bounded size, large files checked while they arrive, the lines of a commit."""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from anyio import to_thread
from starlette.requests import Request

from hub.folder_errors import RequestInvalid
from hub.folder_faults import Line, Stats
from hub.folder_store import Change, FolderStore
from hub.names import COMMIT, SHA256

MAX_BODY = 256 << 20
BUFFER = 4 << 20


@dataclass(frozen=True)
class CommitHeader:
    """First line of a commit."""

    title: str
    description: str
    parent: str | None


async def small_body(request: Request) -> bytes:
    """The whole body, up to a bound that no honest commit reaches."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise RequestInvalid(f"the body is larger than {MAX_BODY} bytes")
    return bytes(body)


async def receive_file(
    request: Request, store: FolderStore, repo: str, sha256: str, size: int, stats: Stats, line: Line
) -> None:
    """Stream one large file to the disk; it is kept only if its size and sha256 are those of the link."""
    temporary, digest, received = store.temporary(), hashlib.sha256(), 0
    try:
        with temporary.open("wb") as file:
            buffer = bytearray()
            async for piece in request.stream():
                buffer += piece
                received += len(piece)
                await line.receive(len(piece))
                if received > size:
                    raise RequestInvalid(f"more than the {size} bytes that were announced")
                if len(buffer) >= BUFFER:
                    await to_thread.run_sync(_write, file, digest, bytes(buffer))
                    buffer.clear()
            await to_thread.run_sync(_write, file, digest, bytes(buffer))
        stats.count_bytes("upload", received)
        if received != size or digest.hexdigest() != sha256:
            raise RequestInvalid("the body is not the file that was announced: its size or sha256 differs")
        await to_thread.run_sync(store.accept_large, repo, temporary, sha256)
    finally:
        await to_thread.run_sync(_discard, temporary)


def _write(file: BinaryIO, digest: Any, data: bytes) -> None:
    file.write(data)
    digest.update(data)


def _discard(path: Path) -> None:
    path.unlink(missing_ok=True)


def parse_commit(body: bytes) -> tuple[CommitHeader, list[Change]]:
    """Header and changes of a commit body (one JSON object a line)."""
    header: CommitHeader | None = None
    changes: list[Change] = []
    for line in body.splitlines():
        if not line.strip():
            continue
        key, value = _line(line)
        if key == "header":
            header = _header(value)
        else:
            changes.append(_change(key, value))
    if header is None:
        raise RequestInvalid("a commit starts with its header")
    return header, changes


def _line(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        document = json.loads(line)
        key, value = document["key"], document["value"]
    except (ValueError, KeyError, TypeError, RecursionError):
        key = value = None
    if not isinstance(key, str) or not isinstance(value, dict):
        raise RequestInvalid("each line of a commit is an object with a key and a value")
    return key, value


def _header(value: dict[str, Any]) -> CommitHeader:
    title, description, parent = (
        value.get("summary"),
        value.get("description") or "",
        value.get("parentCommit"),
    )
    if not isinstance(title, str) or not isinstance(description, str):
        raise RequestInvalid("the header of a commit needs a summary")
    if parent is not None and not (isinstance(parent, str) and COMMIT.match(parent)):
        raise RequestInvalid("parentCommit must be a full commit id")
    return CommitHeader(title, description, parent)


def _change(key: str, value: dict[str, Any]) -> Change:
    path = value.get("path")
    if not isinstance(path, str):
        raise RequestInvalid("each change needs a path")
    if key == "file":
        return Change(path, content=_content(value))
    if key == "lfsFile":
        sha256, size = value.get("oid"), value.get("size")
        if not isinstance(sha256, str) or not SHA256.match(sha256) or not isinstance(size, int) or size < 0:
            raise RequestInvalid(f"{path} needs a sha256 and a size")
        return Change(path, sha256=sha256, size=size)
    if key in ("deletedFile", "deletedFolder"):
        return Change(path.rstrip("/"), folder=key == "deletedFolder")
    raise RequestInvalid(f"a commit line of kind {key[:40]!r} is not understood")


def _content(value: dict[str, Any]) -> bytes:
    content = value.get("content")
    if not isinstance(content, str):
        raise RequestInvalid("a small file needs its content")
    if value.get("encoding") != "base64":
        return content.encode()
    try:
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error):
        raise RequestInvalid("the content of a small file must be base64") from None
