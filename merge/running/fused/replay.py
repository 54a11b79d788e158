"""Steps that were traced once, followed again for another tensor without doing anything: the same calls on
the same stand-ins give the same program with other numbers. That takes a fraction of the time of tracing, and
nothing that the steps make of measured values, of draws or of the tensor's name is missed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from merge.contract.rows import Aligned
from merge.kernels.keyed import stream_key
from merge.running.fused.notes import Notes, TracedDraws
from merge.running.fused.trace import Program, Tracer


class Strayed(Exception):
    """These steps do something else."""


@dataclass(frozen=True)
class _Event:
    """A call with what does not vary, and what it gave. ``slots`` of the program hold some of the plain
    numbers in it, each with its place among them; the others are ``fixed``.
    """

    call: list[Any]
    result: Any
    slots: tuple[tuple[int, int], ...] = ()
    fixed: tuple[tuple[int, float], ...] = ()
    words: tuple[int, ...] = ()


@dataclass
class _Call:
    """A call laid out flat: what must be the same, plain numbers, and tensors that are not followed, which
    have a number for each column.
    """

    same: list[Any]
    floats: list[float] = field(default_factory=list)
    tables: list[Tensor] = field(default_factory=list)

    def add(self, value: Any, places: dict[int, int]) -> None:
        """An argument; ``places`` are those of the stand-ins by their identity."""
        if isinstance(value, Tensor):
            self._add_tensor(value, places.get(id(value)))
        elif isinstance(value, float):
            self.same.append(float)
            self.floats.append(value)
        elif isinstance(value, list | tuple):
            self.same += (type(value), len(value))
            for each in value:
                self.add(each, places)
        elif isinstance(value, dict):
            self.same += (dict, *value)
            for each in value.values():
                self.add(each, places)
        else:
            self.same += (type(value), value)

    def _add_tensor(self, value: Tensor, place: int | None) -> None:
        if place is not None:
            self.same.append((place,))
        elif not value.dim():
            self.same.append(value.dtype)
            self.floats.append(float(value))
        else:
            self.same.append((value.dtype, value.shape))
            self.tables.append(value)


def _follows(values: Iterable[Any], places: dict[int, int]) -> bool:
    """Whether a stand-in is among these arguments: most calls are about plain numbers."""
    for value in values:
        if id(value) in places or (type(value) in (list, tuple) and _follows(value, places)):
            return True
    return False


class Recording(TorchFunctionMode):
    """Passes everything on to a tracer and notes what it was."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer
        self.events: list[_Event] = []
        self.places: dict[int, int] = {}
        self.held: list[Tensor] = []
        self._aside = False
        self.lost = False
        """Whether something was done that cannot be followed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the tracer."""
        return self._tracer.shape

    @property
    def program(self) -> Program:
        """As of the tracer."""
        return self._tracer.program

    def input(self, place: int) -> Tensor:
        """As of the tracer."""
        made: Tensor = self._kept(_Event(["input", place], self._asked(self._tracer.input, place)))
        return made

    def draw(self, op: str, key: int, stream: int, limit: int) -> Tensor:
        """As of the tracer."""
        made: Tensor = self._kept(
            _Event(["draw", op], self._asked(self._tracer.draw, op, key, stream, limit))
        )
        return made

    def draws(self, key: int, *_: Any) -> TracedDraws:
        """As of the tracer."""
        return TracedDraws(self, key)

    def aligned(self, value: Aligned, first: int, shape: tuple[int, ...]) -> Any:
        """As of the tracer."""
        found = self._asked(self._tracer.aligned, value, first, shape)
        if value.by_row() is None:
            return found
        if isinstance(found, Tensor):
            return self._kept(_Event(["aligned", shape], found))
        return [self._kept(_Event(["aligned", shape], each)) for each in found]

    def node_of(self, value: Any, kind: str | None = None) -> int:
        """As of the tracer."""
        node: int = self._asked(self._tracer.node_of, value, kind)
        place = self.places.get(id(value))
        self.lost |= place is None
        self.events.append(_Event(["node", place, kind], node))
        return node

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does it, and notes it where it is about stand-ins."""
        kwargs = kwargs or {}
        if self._aside or not _follows((*args, *kwargs.values()), self.places):
            return func(*args, **kwargs)
        program, call = self._tracer.program, _Call([func])
        call.add((args, kwargs), self.places)
        numbers, words, tables = len(program.numbers), len(program.words), len(program.tables)
        result = func(*args, **kwargs)
        slots = list(_slots(call.floats, program.numbers, numbers))
        used = [at for _, at in slots]
        fixed = tuple((at, value) for at, value in enumerate(call.floats) if at not in used)
        twice = len(set(used)) < len(used) or len({slot for slot, _ in slots}) < len(slots)
        self.lost |= twice or len(program.tables) - tables != len(call.tables)
        return self._kept(_Event(call.same, result, tuple(slots), fixed, tuple(program.words[words:])))

    def _asked(self, tell: Callable[..., Any], *about: Any) -> Any:
        """What the tracer says; what it does for that is nothing to note."""
        self._aside = True
        try:
            return tell(*about)
        finally:
            self._aside = False

    def _kept(self, event: _Event) -> Any:
        self.events.append(event)
        if isinstance(event.result, Tensor) and id(event.result) not in self.places:
            self.places[id(event.result)] = len(self.held)
            self.held.append(event.result)
        self.lost |= isinstance(event.result, list | tuple) and any(
            isinstance(each, Tensor) for each in event.result
        )
        return event.result


def _slots(floats: list[float], numbers: list[float], first: int) -> Iterator[tuple[int, int]]:
    """The slots from ``first`` on, each with every one of these numbers that it may be."""
    for slot in range(first, len(numbers)):
        yield from ((slot, at) for at, value in enumerate(floats) if value == numbers[slot])


class Script:
    """What is to be followed. ``steps`` keeps alive what it is about; it is ``proven`` once following gave
    what tracing gave.
    """

    def __init__(self, steps: object, recording: Recording, made: Any) -> None:
        self._steps = steps
        self._held = recording.held
        self.nbytes = sum(each.nbytes for each in recording.held)
        self.places = recording.places
        self.events = recording.events
        self.nodes = recording.program.nodes
        self.numbers = [*recording.program.numbers]
        self.made = made
        self.proven = False
        self.stamp = object()

    def followed(self, shape: tuple[int, ...], make: Callable[[Notes], Any]) -> Program | None:
        """The program of what ``make`` does now, if that is the same but for its numbers."""
        follower = _Follower(self, shape)
        try:
            with follower:
                made = make(follower)
        except Strayed:
            return None
        return follower.program if follower.ended and made == self.made else None


class _Follower(TorchFunctionMode):
    """Holds every call against the script and does nothing."""

    def __init__(self, script: Script, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._script = script
        self._at = 0
        self.shape = shape
        self.program = Program(script.nodes, [*script.numbers], stamp=script.stamp)

    @property
    def ended(self) -> bool:
        """Whether all of it was done."""
        return self._at == len(self._script.events)

    def input(self, place: int) -> Tensor:
        """As of the tracer."""
        made: Tensor = self._next(["input", place]).result
        return made

    def draw(self, op: str, key: int, stream: int, limit: int) -> Tensor:
        """As of the tracer."""
        mixed = stream_key(key, stream, 0)
        self.program.words += [mixed & 0xFFFFFFFF, mixed >> 32, limit & 0xFFFFFFFF]
        made: Tensor = self._next(["draw", op]).result
        return made

    def draws(self, key: int, *_: Any) -> TracedDraws:
        """As of the tracer."""
        return TracedDraws(self, key)

    def aligned(self, value: Aligned, first: int, shape: tuple[int, ...]) -> Any:
        """As of the tracer."""
        numbers = value.by_row()
        if numbers is None:
            return value.at(first, shape)
        alone = isinstance(numbers, Tensor)
        each = [numbers] if isinstance(numbers, Tensor) else numbers
        self.program.tables += [(table.contiguous(), shape[1]) for table in each]
        found = [self._next(["aligned", shape]).result for _ in each]
        return found[0] if alone else found

    def node_of(self, value: Any, kind: str | None = None) -> int:
        """As of the tracer."""
        node: int = self._next(["node", self._script.places.get(id(value)), kind]).result
        return node

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Gives what it gave."""
        kwargs = kwargs or {}
        if not _follows((*args, *kwargs.values()), self._script.places):
            return func(*args, **kwargs)
        call = _Call([func])
        call.add((args, kwargs), self._script.places)
        event = self._next(call.same)
        for slot, at in event.slots:
            self.program.numbers[slot] = call.floats[at]
        if any(call.floats[at] != value for at, value in event.fixed):
            raise Strayed
        self.program.words += event.words
        self.program.tables += [(table.contiguous(), 0) for table in call.tables]
        return event.result

    def _next(self, call: list[Any]) -> _Event:
        if self.ended or self._script.events[self._at].call != call:
            raise Strayed
        self._at += 1
        return self._script.events[self._at - 1]
