"""Files of snapshots on their way while others read them already: whole or in ranges, in the order they are
wanted.

A file grows in its place: it has its full size from the start, with holes where nothing has arrived yet,
and ``wait_for`` returns when bytes are there. A file that comes whole is checked against the commit's hash
when its last byte is there, which is after some of it was used: nothing that was made from it counts before
``finish`` has returned. A file of which only ranges come cannot be checked against that hash; what holds then
is the commit in the address, the hash that the Hub states with the answer, and the transport.
"""

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

from hub import xet
from hub.download import FILES_AT_ONCE, STALLED_TRIES, fetch_checked
from hub.errors import DiskFull, HashMismatch, HubError, Interrupted, Tainted, Unavailable
from hub.growing import Growing, Parcel
from hub.session import arriving
from hub.snapshot import Hub

LOOK_SECONDS = 0.2


class Delivery:
    """Brings parcels, the first ones first. Used as a context manager: threads work while it is open.

    ``on_bytes`` gets the number of bytes that are there in addition, from any thread but one call at a time.
    """

    def __init__(
        self,
        hub: Hub,
        parcels: Sequence[Parcel],
        *,
        should_stop: Callable[[], bool],
        on_bytes: Callable[[int], None] = lambda _: None,
        at_once: int = FILES_AT_ONCE,
    ) -> None:
        self.fetched = 0
        """Bytes that came over the network, those that came in vain too."""
        self._hub, self._asked_to_stop, self._on_bytes = hub, should_stop, on_bytes
        self._changed = threading.Condition()
        self._left = False
        self._failure: BaseException | None = None
        self._growing = {each.folder / each.name: Growing(each) for each in parcels}
        self._pool = ThreadPoolExecutor(max(1, at_once), thread_name_prefix="hub-delivery")

    def __enter__(self) -> "Delivery":
        for each in self._growing.values():
            each.open()
            self._arrived(each)
        self._check_room()
        for each in self._growing.values():
            self._pool.submit(self._bring, each)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def wait_for(self, path: Path, begin: int, end: int) -> None:
        """Returns when these bytes are there; at once for a file that is no parcel.

        Raises what stopped the delivery, and ``Interrupted`` when it was asked to stop.
        """
        growing = self._growing.get(path)
        if growing is None or growing.done:
            return
        with self._changed:
            growing.used = True
            while not growing.has(begin, end):
                self._raise_if_over()
                self._changed.wait(LOOK_SECONDS)

    def finish(self) -> None:
        """Returns when everything is there and checked; raises what stopped it.

        ``Tainted`` means that bytes were wrong which may have been used: what was made of them is to be
        thrown away, and may be made anew.
        """
        with self._changed:
            while not all(each.done for each in self._growing.values()):
                self._raise_if_over()
                self._changed.wait(LOOK_SECONDS)

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stop():
            raise Interrupted("stopped while weights were arriving")

    def _stop(self) -> bool:
        return self._left or self._failure is not None or self._asked_to_stop()

    def _check_room(self) -> None:
        folders: dict[Path, int] = {}
        for each in self._growing.values():
            folders[each.parcel.folder] = folders.get(each.parcel.folder, 0) + each.missing
        needed = sum(folders.values())
        for folder in folders:
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise DiskFull(
                    f"the download needs {needed} bytes and the work disk has {free} left; free some space"
                )

    def _bring(self, growing: "Growing") -> None:
        try:
            if not growing.done:
                if (
                    growing.parcel.spans is None
                    and not growing.have
                    and xet.offers_xet(self._hub, growing.file)
                ):
                    self._bring_checked(growing)
                else:
                    self._bring_growing(growing)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _bring_checked(self, growing: "Growing") -> None:
        """By xet a file comes in no order, so nobody sees it before it is whole and checked."""
        there = 0

        def count(number: int) -> None:
            nonlocal there
            there += number
            self.fetched += max(number, 0)
            with self._changed:
                self._on_bytes(number)

        fetch_checked(self._hub, growing.parcel.snapshot, growing.target, count, self._stop)
        with self._changed:
            growing.done = True
            self._changed.notify_all()

    def _bring_growing(self, growing: "Growing") -> None:
        try:
            self._receive_all(growing)
        finally:
            growing.note()
            self._arrived(growing)
        self._close(growing)

    def _receive_all(self, growing: "Growing") -> None:
        session, stalled = self._hub.session, 0
        while (span := growing.next_missing()) is not None:
            before = growing.missing
            try:
                session.call(growing.label, partial(self._receive, growing, span), tries=1)
            except HubError as error:
                stalled = stalled + 1 if growing.missing >= before else 0
                if not error.retryable or isinstance(error, Tainted) or stalled >= STALLED_TRIES:
                    raise
                if not session.pause(error, stalled):
                    raise

    def _receive(self, growing: "Growing", span: tuple[int, int]) -> None:
        begin, end = span
        snapshot, name = growing.parcel.snapshot, growing.file.path
        with self._hub.opened(snapshot, name, begin, end) as (response, at):
            growing.check_answer(response)
            if at < begin:
                self._restart(growing)
            for piece in arriving(response):
                if self._stop():
                    raise Interrupted(f"stopped while {growing.label} was arriving")
                self.fetched += len(piece)
                if at + len(piece) > growing.file.size:
                    raise Unavailable(f"{growing.label} is longer than the commit lists")
                growing.write(at, piece)
                at += len(piece)
                self._arrived(growing)
        if at < end:
            raise Unavailable(f"{growing.label} ended early")

    def _restart(self, growing: "Growing") -> None:
        """The Hub sends from the first byte although a later one was asked for."""
        if growing.used and growing.parcel.spans is None:
            raise Tainted(f"{growing.label} had to be fetched anew after some of it was used")
        if growing.parcel.spans is None:
            with self._changed:
                self._on_bytes(-growing.counted)
                growing.forget()

    def _arrived(self, growing: "Growing") -> None:
        with self._changed:
            number, growing.counted = growing.arrived - growing.counted, growing.arrived
            if number:
                self._on_bytes(number)
            self._changed.notify_all()

    def _close(self, growing: "Growing") -> None:
        if growing.parcel.spans is None and not growing.is_right(self._stop):
            used, count = growing.used, growing.counted
            growing.forget()
            if used:
                raise Tainted(f"{growing.label} was used in part and then had other content than its commit")
            with self._changed:
                self._on_bytes(-count)
            if growing.wrong:
                raise HashMismatch(f"{growing.label} arrives with other content than the commit lists")
            growing.wrong = True
            self._bring_growing(growing)
            return
        growing.settle()
        with self._changed:
            growing.done = True
            self._changed.notify_all()
