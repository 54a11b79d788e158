"""Jobs are taken in their order by any number of threads, and made ahead of use."""

import threading
from collections.abc import Iterator

import pytest

from merge.blocks import Crew, Rooms


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("jobs", [0, 1, 2, 3, 400])
def test_every_job_is_done_once(threads: int, jobs: int) -> None:
    done: list[int] = []
    with Crew(threads) as crew:
        crew.each(range(jobs), done.append)
    assert sorted(done) == list(range(jobs))


def test_one_thread_keeps_the_order_and_makes_nothing_ahead() -> None:
    told: list[tuple[str, int]] = []

    def jobs() -> Iterator[int]:
        for number in range(3):
            told.append(("made", number))
            yield number

    with Crew(1) as crew:
        crew.each(jobs(), lambda number: told.append(("done", number)))
    assert told == [(word, number) for number in range(3) for word in ("made", "done")]


def test_a_slow_job_to_make_keeps_one_thread_alone() -> None:
    """The others go on with what was made before it."""
    reached, going = threading.Event(), threading.Event()

    def jobs() -> Iterator[int]:
        yield from range(3)
        reached.set()
        assert going.wait(10)
        yield 3

    def work(number: int) -> None:
        if reached.is_set() or number:
            going.set()

    with Crew(2) as crew:
        crew.each(jobs(), work)
    assert going.is_set()


@pytest.mark.parametrize("where", ["making", "doing"])
def test_the_first_failure_is_raised(where: str) -> None:
    def jobs() -> Iterator[int]:
        yield from range(10)
        if where == "making":
            raise RuntimeError(where)
        yield from range(10)

    def work(number: int) -> None:
        if where == "doing" and number == 5:
            raise RuntimeError(where)

    with Crew(3) as crew, pytest.raises(RuntimeError, match=where):
        crew.each(jobs(), work)


def test_memory_is_lent_again_where_it_suffices() -> None:
    rooms = Rooms()
    first = rooms.take(1000)
    assert first.numel() >= 1000
    rooms.give(first)
    assert rooms.take(900).data_ptr() == first.data_ptr()
    rooms.give(first)
    assert rooms.take(5000).numel() >= 5000
