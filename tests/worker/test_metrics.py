"""Numbers of workers and dispatchers, read as Prometheus reads them."""

import os
import urllib.request
from pathlib import Path

from jobs.tally import Fact
from tests.acceptance.stack import free_port
from worker.board import Board
from worker.metrics import Gpus, Numbers


def test_numbers_are_served_on_their_port_and_nowhere_without_one() -> None:
    numbers, port = Numbers(), free_port()
    assert numbers.serve("127.0.0.1", 0) is None
    assert numbers.serve("127.0.0.1", port) == port
    numbers.hear(Fact("merge_phase_seconds", ("merging",), 3.0))
    numbers.hear(Fact("webhook_deliveries_total", ("dead",)))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    numbers.close()
    assert 'merge_phase_seconds_sum{phase="merging"} 3.0' in text
    assert 'webhook_deliveries_total{outcome="dead"} 1.0' in text


def test_a_port_that_is_taken_does_not_stop_the_worker() -> None:
    one, two, port = Numbers(), Numbers(), free_port()
    assert one.serve("127.0.0.1", port) == port
    assert two.serve("127.0.0.1", port) is None
    one.close()
    two.close()


def test_what_children_tell_is_counted_once_even_after_they_died(tmp_path: Path) -> None:
    board = Board.create(tmp_path)
    board.tell(Fact("merge_jobs_total", ("linear", "succeeded")))
    board.tell(Fact("merge_phase_seconds", ("merging",), 1.5))
    first = board.told()
    board.tell(Fact("lease_lost_total"))
    (board.folder / f"{os.getpid()}.json").unlink(missing_ok=True)
    told = [*first, *board.told(), *board.told(), *board.told()]
    assert told == [
        Fact("merge_jobs_total", ("linear", "succeeded")),
        Fact("merge_phase_seconds", ("merging",), 1.5),
        Fact("lease_lost_total"),
    ]


def test_a_child_that_ends_after_its_worker_tells_nobody(tmp_path: Path) -> None:
    board = Board.create(tmp_path)
    board.remove()
    board.tell(Fact("lease_lost_total"))
    assert board.told() == []


def test_the_driver_s_words_become_gauges() -> None:
    gauges = {each.name: each for each in Gpus(lambda: "0, 1024, 37\n1, 0, 0\n").collect()}
    memory, load = gauges["gpu_memory_bytes"], gauges["gpu_utilisation"]
    assert [(s.labels["gpu"], s.value) for s in memory.samples] == [("0", 1 << 30), ("1", 0.0)]
    assert [s.value for s in load.samples] == [0.37, 0.0]


def test_without_a_driver_there_are_no_gauges() -> None:
    assert all(not each.samples for each in Gpus(lambda: "").collect())
