"""How far a run has come, and whether it is to stop."""

import threading
from collections.abc import Callable

from merge.errors import Stopped
from merge.plan import Plan
from merge.report import Progress

REPORTS = 200
"""Times that progress is told, at most, in a run."""


class Meter:
    """Counts what is done, tells it now and then, and asks whether to stop; one thread at a time."""

    def __init__(self, plan: Plan, tell: Callable[[Progress], None], should_stop: Callable[[], bool]) -> None:
        self._tell = tell
        self._should_stop = should_stop
        self._lock = threading.Lock()
        self._tensors = 0
        self._tensors_total = len(plan.outputs)
        self._told = 0
        self.bytes_done = 0
        self.bytes_total = 0

    def check(self) -> None:
        """Raises ``Stopped`` when the caller wants that."""
        with self._lock:
            if self._should_stop():
                raise Stopped(
                    "The merge was stopped; finished files are kept, and the same run would go on from them."
                )

    def add(self, read: int, tensors: int = 0) -> None:
        """Counts bytes read and tensors written."""
        with self._lock:
            self.bytes_done += read
            self._tensors += tensors
            due = self.bytes_done - self._told >= self.bytes_total / REPORTS
            if due or self._tensors == self._tensors_total:
                self._told = self.bytes_done
                self._tell(Progress(self._tensors, self._tensors_total, self.bytes_done, self.bytes_total))


class Silent(Meter):
    """Tells nobody, but stops where the meter of the run does."""

    def __init__(self, plan: Plan, outer: Meter) -> None:
        super().__init__(plan, lambda _: None, lambda: False)
        self._outer = outer

    def check(self) -> None:
        """As the meter of the run."""
        self._outer.check()
