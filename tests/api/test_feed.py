"""Waking waiters: each its own job, all of them after a break, and never a leak."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator

from api.feed import Feed
from tests.waiting import until


class Wire:
    """A listener whose news come from the test; an exception breaks the connection."""

    def __init__(self) -> None:
        self.news: queue.Queue[str | Exception | None] = queue.Queue()
        self.connections = 0

    def listen(self, should_stop: Callable[[], bool]) -> Iterator[str | None]:
        self.connections += 1
        yield None
        while not should_stop():
            try:
                each = self.news.get(timeout=0.02)
            except queue.Empty:
                continue
            if isinstance(each, Exception):
                raise each
            yield each


def test_only_the_waiters_of_a_job_are_woken_by_it() -> None:
    async def story() -> tuple[bool, bool]:
        wire = Wire()
        feed = Feed(wire.listen)
        async with feed.waiting("a") as first, feed.waiting("b") as second:
            await first.wait(2), await second.wait(2)
            wire.news.put("a")
            woken = await first.wait(2)
            idle = await second.wait(0.1)
        await feed.stop()
        assert not feed.waiters
        return woken, idle

    assert asyncio.run(story()) == (True, False)


def test_everybody_looks_again_after_a_break() -> None:
    async def story() -> int:
        wire = Wire()
        feed = Feed(wire.listen, retry_seconds=0.01)
        async with feed.waiting("a") as waiter:
            assert await waiter.wait(2)
            wire.news.put(OSError("the connection broke"))
            assert await waiter.wait(2)
        await feed.stop()
        return wire.connections

    assert asyncio.run(story()) == 2


def test_who_was_let_in_is_forgotten_when_nobody_hears_of_revocations_any_more() -> None:
    async def story() -> list[bool]:
        wire, heard = Wire(), list[bool]()
        feed = Feed(wire.listen, retry_seconds=60, on_key=lambda: heard.append(feed.hearing))
        async with feed.waiting("a") as waiter:
            await waiter.wait(2)
            wire.news.put(OSError("the connection broke"))
            await asyncio.to_thread(until, lambda: len(heard) == 2)
        await feed.stop()
        return heard[:2]

    assert asyncio.run(story()) == [False, False], "when it begins to hear, and when it no longer does"


def test_stopping_ends_the_thread_and_wakes_who_waits() -> None:
    async def story() -> None:
        feed = Feed(Wire().listen)
        async with feed.waiting("a") as waiter:
            await waiter.wait(2)
            stopped = asyncio.ensure_future(feed.stop())
            assert await waiter.wait(2)
            await stopped
        assert feed.closed.is_set()

    asyncio.run(story())
    assert not [each for each in threading.enumerate() if each.name == "feed"]


def test_nothing_is_connected_before_somebody_waits() -> None:
    wire = Wire()
    Feed(wire.listen)
    assert wire.connections == 0


def test_a_full_process_says_so() -> None:
    async def story() -> tuple[bool, bool]:
        feed = Feed(Wire().listen, most=1)
        before = feed.has_room
        async with feed.waiting("a"):
            during = feed.has_room
        await feed.stop()
        return before, during

    assert asyncio.run(story()) == (True, False)
