"""Sends one signed webhook: only to checked addresses, within a deadline, believing nothing of the reply."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import httpcore2

from worker.address import Network, Resolver, Target, locate
from worker.errors import AddressRefused

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
REPLY_BYTES = 64 << 10
OUR_HEADERS = {"user-agent": "mergery-webhooks/1", "content-type": "application/json"}
FAILURES = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError)


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one try. ``status`` is ``None`` if no answer came; ``error`` then says why."""

    status: int | None
    error: str | None = None
    retry_after: float | None = None
    body: bytes = b""
    seconds: float = 0.0

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True)
class Sender:
    """Posts to webhook receivers. Follows no redirect, uses no proxy, keeps no connection."""

    allow_http: bool = False
    allowed: Sequence[Network] = ()
    resolver: Resolver = socket.getaddrinfo
    ssl_context: ssl.SSLContext = field(default_factory=httpcore2.default_ssl_context)
    connect_seconds: float = CONNECT_SECONDS
    total_seconds: float = TOTAL_SECONDS

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Checks where ``url`` leads, posts there, and reads at most 64 KiB of the answer; never raises."""
        started = time.monotonic()
        deadline = started + self.total_seconds
        try:
            target = locate(url, allow_http=self.allow_http, allowed=self.allowed, resolver=self.resolver)
            status, reply_headers, text = self._exchange(target, headers, body, deadline)
        except AddressRefused as error:
            return Reply(None, str(error), seconds=time.monotonic() - started)
        except FAILURES as error:
            late = time.monotonic() >= deadline
            reason = f"no complete answer within {self.total_seconds:g} s" if late else _describe(error)
            return Reply(None, reason, seconds=time.monotonic() - started)
        seconds = time.monotonic() - started
        problem = None if 200 <= status < 300 else _refusal(status)
        return Reply(status, problem, _retry_after(reply_headers, time.time), text, seconds)

    def _exchange(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        backend = _CheckedBackend(target.addresses, deadline)
        sent = [(name.encode(), value.encode()) for name, value in {**OUR_HEADERS, **headers}.items()]
        with (
            backend.watched(),
            httpcore2.ConnectionPool(ssl_context=self.ssl_context, network_backend=backend) as pool,
            pool.stream(
                "POST",
                target.url,
                headers=sent,
                content=body,
                extensions={
                    "timeout": {
                        "connect": self.connect_seconds,
                        "read": self.total_seconds,
                        "write": self.total_seconds,
                        "pool": self.connect_seconds,
                    },
                    "sni_hostname": target.host,
                },
            ) as response,
        ):
            return response.status, _lower(response.headers), _read(response.iter_stream())


class _CheckedBackend(httpcore2.NetworkBackend):
    """Connects to the checked addresses whatever the name says now; cuts the connection at the deadline."""

    def __init__(self, addresses: Sequence[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._network = httpcore2.SyncBackend()
        self._connected: socket.socket | None = None

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        failure: Exception = httpcore2.ConnectTimeout("no address answered in time")
        for address in self._addresses:
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            try:
                stream = self._network.connect_tcp(
                    address, port, min(left, timeout or left), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
                continue
            self._connected = stream.get_extra_info("socket").dup()
            return stream
        raise failure

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Shuts the connection down at the deadline; a receiver that drips its answer cannot outlast it."""
        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if self._connected is not None:
                self._connected.close()

    def _cut(self) -> None:
        if self._connected is not None:
            try:
                self._connected.shutdown(socket.SHUT_RDWR)
            except OSError:
                return


def _lower(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in headers}


def _read(chunks: Iterable[bytes]) -> bytes:
    text = bytearray()
    for chunk in chunks:
        text += chunk
        if len(text) >= REPLY_BYTES:
            break
    return bytes(text[:REPLY_BYTES])


def _retry_after(headers: Mapping[bytes, bytes], now: Callable[[], float]) -> float | None:
    value = headers.get(b"retry-after", b"").decode("latin-1").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now())
    except (ValueError, OverflowError):
        return None


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return f"the receiver answered {status}; redirects are not followed, register the final url"
    return f"the receiver answered {status}"


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
