"""The board between a worker and its children, and the health file."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.tally import Fact
from worker.board import Board, Note, health_path, is_healthy


def test_a_note_is_read_as_it_was_written_and_taken_down(tmp_path: Path) -> None:
    board = Board.create(tmp_path)
    note = Note(4711, "job_1", 2, "host:4711:1", alive_at=12.5, stop_at=13.0, reason="cancel")
    board.write(note)
    board.write(Note(4712, "job_2", 1, "host:4712:1", alive_at=1.0))
    assert board.notes()[0] == note and len(board.notes()) == 2
    board.clear(4711)
    board.clear(4711)
    assert [each.pid for each in board.notes()] == [4712]


def test_of_facts_a_full_disk_costs_only_those_that_it_did_not_take(tmp_path: Path) -> None:
    board = Board.create(tmp_path)
    fact = Fact("merge_phase_seconds", ("merging",), 1.5)
    board.tell(fact)
    with (board.folder / f"{os.getpid()}.facts").open("a") as file:
        file.write('{"name": "merge_ph')
    board.tell(fact)
    board.tell(fact)
    assert [*board.told(), *board.told()] == [fact, fact]


def test_two_threads_of_a_child_may_write_its_note_at_once(tmp_path: Path) -> None:
    board = Board.create(tmp_path)

    def write() -> None:
        for _ in range(300):
            board.write(Note(4711, "job_1", 1, "host:4711:1", alive_at=1.0))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write) for _ in range(4)]:
            done.result()
    assert [path.name for path in board.folder.iterdir()] == ["4711.json"]


def test_children_see_that_the_worker_stops(tmp_path: Path) -> None:
    board = Board.create(tmp_path)
    assert not board.is_stopping()
    board.ask_to_stop()
    assert Board(board.folder).is_stopping()


def test_boards_of_dead_workers_go_after_a_day(tmp_path: Path) -> None:
    old, young = Board.create(tmp_path), Board.create(tmp_path)
    long_ago = time.time() - 100_000
    os.utime(old.folder, (long_ago, long_ago))
    Board.create(tmp_path)
    assert not old.folder.exists() and young.folder.exists()


def test_the_board_of_a_worker_that_is_idle_for_days_stays(tmp_path: Path) -> None:
    board = Board.create(tmp_path)
    long_ago = time.time() - 100_000
    os.utime(board.folder, (long_ago, long_ago))
    board.keep()
    Board.create(tmp_path)
    board.write(Note(4711, "job_1", 1, "host:4711:1", alive_at=1.0))
    assert len(board.notes()) == 1


def test_a_worker_is_healthy_while_its_file_is_fresh(tmp_path: Path) -> None:
    assert not is_healthy(tmp_path)
    Board.create(tmp_path)
    health_path(tmp_path).touch()
    assert is_healthy(tmp_path)
    long_ago = time.time() - 60
    os.utime(health_path(tmp_path), (long_ago, long_ago))
    assert not is_healthy(tmp_path)
