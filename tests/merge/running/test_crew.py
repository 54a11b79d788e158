"""Jobs are taken in their order by any number of threads, and made ahead of use."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from merge.running.crew import Crew


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


def test_a_job_that_ends_an_iterator_is_not_the_last_one() -> None:
    """What it raises is no end of the queue, which would leave the other jobs undone without a word."""

    def work(number: int) -> None:
        if number == 5:
            next(iter(()))

    with Crew(3) as crew, pytest.raises(StopIteration):
        crew.each(range(10), work)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("lengths", [(), (0, 3), (1, 40, 7)])
def test_the_jobs_of_several_queues_are_done_once(threads: int, lengths: tuple[int, ...]) -> None:
    queues = [[(at, number) for number in range(length)] for at, length in enumerate(lengths)]
    done: list[tuple[int, int]] = []
    with Crew(threads) as crew:
        crew.each_of(queues, done.append)
    assert sorted(done) == [job for queue in queues for job in queue]


def test_one_thread_takes_from_several_queues_in_turn() -> None:
    done: list[str] = []
    with Crew(1) as crew:
        crew.each_of((["a1", "a2", "a3"], ["b1"], ["c1", "c2"]), done.append)
    assert done == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_threads_keep_to_their_own_queue_while_there_are_enough() -> None:
    """Every job of ``a`` waits for one of ``b``, so both go on to the end side by side."""
    meet = threading.Barrier(2, timeout=10)
    names: dict[str, set[str]] = {"a": set(), "b": set()}

    def work(queue: str) -> None:
        names[queue].add(threading.current_thread().name)
        meet.wait()

    with Crew(2) as crew:
        crew.each_of((["a"] * 50, ["b"] * 50), work)
    assert len(names["a"]) == len(names["b"]) == 1
    assert names["a"] != names["b"]


def test_a_thread_whose_queue_is_at_its_end_helps_at_another() -> None:
    meet = threading.Barrier(2, timeout=10)

    def work(queue: str) -> None:
        if queue == "a":
            meet.wait()

    with Crew(2) as crew:
        crew.each_of((["a"] * 6, ["b"]), work)
    assert not meet.broken


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Whoever runs the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_who_is_interrupted_leaves_no_thread_at_work() -> None:
    """What the threads work with is closed next."""
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.1)
        if number == 0:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.1)
        done.append(number)

    with Crew(2) as crew:
        with pytest.raises(KeyboardInterrupt):
            crew.each(range(100), work)
        left = len(done)
        time.sleep(0.15)
        assert len(done) == left < 10
