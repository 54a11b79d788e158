"""The supervisor of `mergery up`: what dies is started again, what is told to stop stops."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from cli import supervisor
from cli.supervisor import Part, Supervisor
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]


def sleeper(mark: Path) -> list[str]:
    """A process that writes a line with its id when it starts and one when it is asked to stop."""
    code = (
        "import os, signal, sys, time\n"
        "mark = sys.argv[1]\n"
        "def say(text):\n"
        "    with open(mark, 'a') as file: file.write(text + chr(10))\n"
        "def stop(*_):\n"
        "    say('stopped'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "say(f'started {os.getpid()}')\n"
        # A signal that comes right before a sleep is heard after it.
        "for _ in range(600): time.sleep(0.1)\n"
    )
    return [sys.executable, "-c", code, str(mark)]


def lines(mark: Path) -> list[str]:
    return mark.read_text().splitlines() if mark.exists() else []


def drive(
    parts: list[Part],
    story: Callable[[Supervisor], None],
    said: list[str],
    guard: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Runs a supervisor in this thread while ``story`` acts in another and then asks it to stop."""
    watched = Supervisor(parts, dict(os.environ), guard=guard, say=said.append)
    failures: list[BaseException] = []

    def act() -> None:
        try:
            story(watched)
        except BaseException as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    thread = threading.Thread(target=act)
    thread.start()
    try:
        watched.run()
    finally:
        thread.join()
        for each, handler in before.items():
            signal.signal(each, handler)
    if failures:
        raise failures[0]


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTART_SECONDS", 0.05)


def test_a_killed_part_is_started_again_and_stopped_at_the_end(tmp_path: Path) -> None:
    mark, said = tmp_path / "mark", list[str]()
    part = Part("sleeper", sleeper(mark))

    def story(_: Supervisor) -> None:
        until(lambda: len(lines(mark)) == 1)
        os.kill(int(lines(mark)[0].split()[1]), signal.SIGKILL)
        until(lambda: len(lines(mark)) == 2)

    drive([part], story, said)
    assert lines(mark)[1].startswith("started")
    assert lines(mark)[2] == "stopped"
    assert said == ["sleeper ended with exit code -9; starting it again in 0 s"]


def test_a_part_that_keeps_dying_is_started_ever_more_slowly(tmp_path: Path) -> None:
    said = list[str]()
    part = Part("broken", [sys.executable, "-c", "raise SystemExit(3)"])
    drive([part], lambda _: until(lambda: len(said) >= 3), said)
    assert part.deaths >= 3
    assert all("exit code 3" in line for line in said)


class Process:
    """One that has ended with this code, or runs."""

    def __init__(self, code: int | None) -> None:
        self.poll = lambda: code


def test_restarts_wait_twice_as_long_each_time_until_a_part_has_run_for_a_while() -> None:
    part, watched = Part("broken", []), Supervisor([], {}, dict, lambda _: None)

    def delay() -> float:
        part.process, now = cast(Any, Process(3)), time.monotonic()
        watched._tend(part)
        return part.restart_at - now

    assert [delay() for _ in range(4)] == pytest.approx([0.05, 0.1, 0.2, 0.4], abs=0.03)
    part.deaths = 50
    assert delay() == pytest.approx(supervisor.RESTART_CEILING_SECONDS, abs=0.03)
    part.process, part.started_at = cast(Any, Process(None)), time.monotonic() - supervisor.STEADY_SECONDS - 1
    watched._tend(part)
    assert delay() == pytest.approx(0.05, abs=0.03)


def test_every_part_is_asked_to_stop(tmp_path: Path) -> None:
    mark, said = tmp_path / "mark", list[str]()
    parts = [Part("first", sleeper(mark)), Part("second", sleeper(mark))]
    drive(parts, lambda _: until(lambda: len(lines(mark)) == 2), said)
    assert lines(mark).count("stopped") == 2
    assert said == []


def test_parts_begin_anew_with_what_the_guard_says_has_changed(tmp_path: Path) -> None:
    mark, changes = tmp_path / "mark", [{"WHERE": "there"}]
    code = "import os, sys, time; print(os.getenv('WHERE'), file=open(sys.argv[1], 'a')); time.sleep(60)"

    def guard() -> Mapping[str, str]:
        return changes.pop() if changes and lines(mark) else {}

    def story(_: Supervisor) -> None:
        until(lambda: len(lines(mark)) == 2)

    drive([Part("teller", [sys.executable, "-c", code, str(mark)])], story, [], guard)
    assert lines(mark) == ["None", "there"]


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed_leaves_no_part_behind_unless_nohup_says_so(
    tmp_path: Path, nohup: bool
) -> None:
    mark = tmp_path / "mark"

    def story(watched: Supervisor) -> None:
        until(lambda: len(lines(mark)) == 1)
        os.kill(os.getpid(), signal.SIGHUP)
        if nohup:
            time.sleep(0.2)
            assert not watched.stopping
        else:
            until(lambda: watched.stopping)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        drive([Part("sleeper", sleeper(mark))], story, [])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert lines(mark)[1:] == ["stopped"]


def test_parts_are_asked_to_stop_when_whoever_started_them_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        "import os, sys\n"
        "from cli.supervisor import Part, Supervisor\n"
        "parts = [Part('sleeper', sys.argv[1:])]\n"
        "Supervisor(parts, dict(os.environ), guard=dict, say=print).run()\n"
    )
    started = subprocess.Popen([sys.executable, "-c", code, *sleeper(mark)], cwd=ROOT)
    try:
        until(lambda: len(lines(mark)) == 1, seconds=60)
    finally:
        started.kill()
        started.wait()
    until(lambda: lines(mark)[1:] == ["stopped"], seconds=60)


def test_a_part_whose_parent_has_died_before_it_could_be_told_does_not_begin() -> None:
    code = (
        "import os, signal, sys\n"
        "from cli.supervisor import begin_part\n"
        "begin_part(signal.SIGTERM, int(sys.argv[1]) or os.getppid())\n"
        "print('begun')\n"
    )
    nobody = os.getpid() + 1
    for parent, begun in ((0, "begun\n"), (nobody, "")):
        ended = subprocess.run(
            [sys.executable, "-c", code, str(parent)], cwd=ROOT, capture_output=True, text=True
        )
        assert ended.stdout == begun, ended.stderr
