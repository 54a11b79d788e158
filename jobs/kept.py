"""A small memory of what takes long to find out."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """A small cache, oldest out first; a value may be too old."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most, self._clock = most, clock
        self._held: OrderedDict[Hashable, tuple[float, Value]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Value], seconds: float = float("inf")) -> Value:
        with self._lock:
            held = self._held.get(key)
        if held is not None and self._clock() - held[0] < seconds:
            return held[1]
        value = make()
        self.put(key, value)
        return value

    def held(self, key: Hashable) -> Value | None:
        """What is kept under ``key``, however old."""
        with self._lock:
            found = self._held.get(key)
        return None if found is None else found[1]

    def put(self, key: Hashable, value: Value) -> None:
        """Keeps ``value``."""
        with self._lock:
            self._held[key] = (self._clock(), value)
            self._held.move_to_end(key)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
