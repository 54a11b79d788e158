"""Where the entries of a tensor's inputs lie: in files that are open, or in memory."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Protocol

from torch import Tensor

from merge.checkpoint.files import Stretch
from merge.checkpoint.pages import Pages
from merge.planning.outputs import Input

IN_MEMORY, IN_PAGES = -1, -3


class Place(NamedTuple):
    """Where entries lie one after another: in the open file ``fd`` from byte ``offset`` on, or, with ``fd``
    ``IN_MEMORY`` or ``IN_PAGES``, at ``address``, as long as ``held`` is kept; in pages other numbers may
    follow there, or nothing.
    """

    fd: int
    offset: int
    address: int
    held: Tensor | Pages | None = None


class Inputs(Protocol):
    """Where the models' tensors are read from."""

    def stretch(self, source: Input) -> Stretch | None:
        """Where the entries of an input lie that can be taken from its file as they are, else ``None``."""

    def held(self, source: Input, number: int, first: int, count: int) -> Tensor:
        """These entries of one input, flat, in this thread's memory for the ``number``-th, not checked."""


class Lying:
    """How one tensor's inputs are come by: as they lie in their files, else held in memory, in compute dtype.
    They are not checked to be finite.
    """

    def __init__(self, inputs: Inputs, sources: Sequence[Input]) -> None:
        self._inputs = inputs
        self._sources = sources
        self._stretches = [inputs.stretch(source) for source in sources]
        self.dtypes = tuple("F32" if lies is None else lies.dtype for lies in self._stretches)
        """What is found there, by input."""
        self.in_files = all(lies is not None for lies in self._stretches)
        self._again = False
        self._pages: dict[int, Pages | None] = {}
        self._lock = threading.Lock()

    @contextmanager
    def at(self, first: int, count: int, *, few: bool = False) -> Iterator[list[Place]]:
        """The places of these entries of each input, as long as the context lasts; with ``few`` only some of
        them are read, for which not all are brought into memory.
        """
        found: list[Place] = []
        borrowed: list[Stretch] = []
        try:
            for number, lies in enumerate(self._stretches):
                if lies is None:
                    entries = self._inputs.held(self._sources[number], number, first, count)
                    found.append(Place(IN_MEMORY, 0, entries.data_ptr(), entries))
                else:
                    fd, offset = lies.borrow(first, count)
                    borrowed.append(lies)
                    pages = None if few else self._in_pages(number, lies, fd, first, count)
                    found.append(pages or Place(fd, offset, 0))
            yield found
        finally:
            for lies in borrowed:
                lies.give_back()

    @contextmanager
    def read_again(self) -> Iterator[None]:
        """As long as the context lasts, what lies in files is not copied each time that it is read. What is
        still being read at its end stays there until then.
        """
        self._again = True
        try:
            yield
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Ends ``read_again`` before its time: whatever is read from now on is copied."""
        with self._lock:
            _held, self._pages, self._again = self._pages, {}, False

    def _in_pages(self, number: int, lies: Stretch, fd: int, first: int, count: int) -> Place | None:
        with self._lock:
            if self._again and number not in self._pages:
                self._pages[number] = lies.pages(fd)
            pages = self._pages.get(number)
        at = first * lies.width
        if pages is None or not pages.bring(fd, at, count * lies.width):
            return None  # reading the file says why
        return Place(IN_PAGES, 0, pages.address + at, pages)


@contextmanager
def all_read_again(lying: Iterable[Lying]) -> Iterator[None]:
    """``read_again`` of all of them."""
    with ExitStack() as stack:
        for each in lying:
            stack.enter_context(each.read_again())
        yield
