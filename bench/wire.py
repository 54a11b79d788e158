"""A cheap HTTP/1.1 client: one kept connection a caller, requests written as bytes, no parsing beyond need.

A load generator that shares the cores with what it measures must cost little itself: an ordinary client
library takes more than a millisecond of CPU a request, this one takes about a tenth of that.
"""

import asyncio
import re
from types import TracebackType

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END = b"\r\n\r\n"


class Broken(Exception):
    """The connection ended in the middle of an answer."""


class Wire(asyncio.Protocol):
    """One connection; ``ask`` sends one request at a time and connects again where the server has left."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._got = b""

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises ``Broken`` or ``OSError``."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            self._transport, _ = await loop.create_connection(lambda: self, self._host, self._port)
        self._got = b""
        self._answer = loop.create_future()
        self._transport.write(request)
        return await self._answer

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Collects until the answer's declared length is there."""
        self._got += data
        head = self._got.find(_END)
        if head < 0 or self._answer is None or self._answer.done():
            return
        found = _LENGTH.search(self._got, 0, head + 2)
        begin = head + len(_END)
        if found is None:
            self._answer.set_exception(Broken("an answer without a length"))
        elif len(self._got) - begin >= int(found[1]):
            self._answer.set_result((int(self._got[9:12]), self._got[begin:]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait for an answer that will not come."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Broken(str(exc or "the server closed the connection")))


def message(method: str, path: str, host: str, key: str, body: bytes | None = None) -> bytes:
    """A whole request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {key}"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + _END + (body or b"")
