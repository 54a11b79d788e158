"""What a folder Hub counts, and the faults it can be told to show: its own tests and everybody else's rely on
both.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anyio import sleep


@dataclass(frozen=True)
class Fault:
    """One way to misbehave.

    ``status`` answers with that HTTP status (``code`` and ``message`` go into the Hub's error headers).
    ``after`` first does the work, so that only the reply is lost. ``delay`` seconds pass before anything
    else. ``drop_after`` ends the connection after so many bytes of the body. ``corrupt`` replaces the body by
    zeros of the same length. ``shift`` sends a range that lies so many bytes further on, and says so.
    """

    status: int | None = None
    code: str | None = None
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after: bool = False
    delay: float = 0.0
    drop_after: int | None = None
    corrupt: bool = False
    shift: int = 0


@dataclass
class _Armed:
    route: str
    fault: Fault
    times: int
    path: str | None


@dataclass
class Line:
    """How fast the line to the Hub is, in bytes a second each way, all connections together; ``None``: no
    limit.
    """

    down: float | None = None
    up: float | None = None
    _free_at: dict[str, float] = field(default_factory=dict, init=False)

    async def send(self, number: int) -> None:
        """Returns when so many more bytes have left the Hub."""
        await self._pass("down", self.down, number)

    async def receive(self, number: int) -> None:
        """Returns when so many more bytes have come to the Hub."""
        await self._pass("up", self.up, number)

    async def _pass(self, way: str, rate: float | None, number: int) -> None:
        if rate is None:
            return
        now = time.monotonic()
        self._free_at[way] = max(now, self._free_at.get(way, 0.0)) + number / rate
        await sleep(self._free_at[way] - now)


class FaultPlan:
    """Faults waiting to happen; each is used up after ``times`` matching requests.

    Routes: whoami, auth, info, tree, paths, refs, head, get, create, preupload, batch, put, xet-token,
    commit, validate, branch. ``tree_extra`` holds raw entries added to every tree listing (hostile file
    names).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self.tree_extra: list[dict[str, Any]] = []
        self.line = Line()

    def add(self, route: str, fault: Fault, *, times: int = 1, path: str | None = None) -> None:
        """Arm ``fault`` for the next ``times`` requests on ``route`` (of the file ``path``, if given)."""
        with self._lock:
            self._armed.append(_Armed(route, fault, times, path))

    def clear(self) -> None:
        """Forget every armed fault."""
        with self._lock:
            self._armed.clear()
            self.tree_extra.clear()

    def take(self, route: str, path: str | None) -> Fault | None:
        """The fault for this request, if any; counts it as used."""
        with self._lock:
            for armed in self._armed:
                if armed.route == route and armed.path in (None, path) and armed.times > 0:
                    armed.times -= 1
                    return armed.fault
        return None


class Stats:
    """Counts of requests by route and of bytes by kind.

    ``bytes`` keys: ``header`` (safetensors length prefix and header), ``weight`` (everything else in weight
    files), ``text`` (any other file), ``upload`` (bodies received). Bytes that xet moves never pass through
    the server.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def count_request(self, route: str) -> None:
        """One more request on ``route``."""
        with self._lock:
            self.requests[route] += 1

    def count_bytes(self, kind: str, number: int) -> None:
        """``number`` more bytes of ``kind``."""
        if number > 0:
            with self._lock:
                self.bytes[kind] += number

    def clear(self) -> None:
        """Start again from zero."""
        with self._lock:
            self.requests.clear()
            self.bytes.clear()
