"""Keeps the processes of `mergery up` alive: starts them, revives the dead, stops them in order."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

RESTART_SECONDS = 1.0
RESTART_CEILING_SECONDS = 30.0
STEADY_SECONDS = 60.0
POLL_SECONDS = 0.3
STOP_SECONDS = 60.0
PARENT_DIED = 1
"""``PR_SET_PDEATHSIG`` of Linux' prctl."""
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Part:
    """One process of the service and what is known of it."""

    name: str
    command: Sequence[str]
    stop_signal: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    deaths: int = 0


def mergery(*arguments: str) -> list[str]:
    """The command line of another `mergery` process with this interpreter."""
    return [sys.executable, "-m", "cli.main", *arguments]


def end_with_parent(with_signal: signal.Signals) -> None:
    """Has the kernel send this process a signal when its parent dies, also by kill -9: it would keep the port
    and the database's data from whoever comes next. Does nothing where there is no Linux.
    """
    with suppress(OSError, AttributeError):
        LIBC.prctl(PARENT_DIED, with_signal)


def begin_part(stop_signal: signal.Signals, parent: int) -> None:
    """What a new process does before it becomes a part: it ends with its parent, also with one that died
    before the kernel was asked to tell.
    """
    signal.signal(stop_signal, signal.SIG_DFL)  # the parent's own handler would hear it, and forget it
    end_with_parent(stop_signal)
    if os.getppid() != parent:
        os._exit(1)


@dataclass
class Supervisor:
    """Runs ``parts`` until told to stop; ``guard`` is called each round and may revive what is not a part. It
    gives the variables of ``environment`` that are others since then, with which all parts begin anew.
    """

    parts: list[Part]
    environment: Mapping[str, str]
    guard: Callable[[], Mapping[str, str]]
    say: Callable[[str], None]
    stopping: bool = field(default=False, init=False)

    def run(self) -> None:
        """Returns after SIGINT, SIGTERM or the end of its terminal, when every part has ended."""
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Parts have sessions of their own and would outlive a closed terminal, keeping port and database;
            # who starts this with nohup wants just that.
            if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, self._ask_to_stop)
        try:
            while not self.stopping:
                if changed := self.guard():
                    self.environment = {**self.environment, **changed}
                    self._stop()
                for part in self.parts:
                    self._tend(part)
                time.sleep(POLL_SECONDS)
        finally:
            self._stop()

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopping = True

    def _tend(self, part: Part) -> None:
        now = time.monotonic()
        if part.process is None:
            if now >= part.restart_at:
                self._start(part, now)
            return
        code = part.process.poll()
        if code is None:
            if now - part.started_at > STEADY_SECONDS:
                part.deaths = 0
            return
        part.process = None
        delay = min(RESTART_SECONDS * 2**part.deaths, RESTART_CEILING_SECONDS)
        part.deaths += 1
        part.restart_at = now + delay
        self.say(f"{part.name} ended with exit code {code}; starting it again in {delay:.0f} s")

    def _start(self, part: Part, now: float) -> None:
        # A group of its own: Ctrl-C reaches this process alone, which then stops the parts in order.
        part.process = subprocess.Popen(
            part.command,
            env=dict(self.environment),
            start_new_session=True,
            preexec_fn=partial(begin_part, part.stop_signal, os.getpid()),
        )
        part.started_at = now

    def _stop(self) -> None:
        running = [(part, part.process) for part in reversed(self.parts) if part.process is not None]
        for part, process in running:
            process.send_signal(part.stop_signal)
        deadline = time.monotonic() + STOP_SECONDS
        for _, process in running:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for part, _ in running:
            part.process = None
