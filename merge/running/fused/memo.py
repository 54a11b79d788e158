"""What was traced for one tensor, taken for others that differ in nothing that the steps could see: tracing a
method takes longer than merging a small tensor.
"""

import threading
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from merge.contract.groups import Site
from merge.kernels.keyed import stream_key
from merge.running.chain import Block, Chain
from merge.running.fused.notes import Notes
from merge.running.fused.replay import Recording, Script
from merge.running.fused.samples import shape_of
from merge.running.fused.trace import Program, Tracer

P = TypeVar("P")
MOST_HELD = 4 << 20
"""Bytes of stand-ins that are kept: of methods that work by rows each is a row, and with settings that vary
from layer to layer there are some for every layer.
"""
Made = Callable[[Notes, Chain, Block], P]
"""Runs some of the steps on stand-ins, and gives what is to be known of it."""


class _Watched(Site):
    """Knows whether anybody has looked at it."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__"):
            object.__setattr__(self, "_seen", True)
        return super().__getattribute__(name)


@dataclass(frozen=True)
class _Trace:
    """``draws`` are slot of the words, stage, position and stream of each; ``steps`` keeps alive what the
    key is about.
    """

    steps: object
    program: Program
    draws: tuple[tuple[int, int, int, int], ...]
    made: Any
    stamp: object = field(default_factory=object)

    def program_of(self, chain: Chain) -> Program:
        """The program with the draws of another tensor."""
        words = list(self.program.words)
        for slot, stage, position, stream in self.draws:
            key = stream_key(chain.draw_key(stage, position), stream, 0)
            words[slot : slot + 2] = key & 0xFFFFFFFF, key >> 32
        return Program(self.program.nodes, self.program.numbers, words, stamp=self.stamp)


class Traces:
    """The traces of a run."""

    def __init__(self) -> None:
        self._found: dict[Hashable, _Trace] = {}
        self._scripts: dict[Hashable, Script | None] = {}
        self._held = 0
        self._lock = threading.Lock()

    def get(
        self, what: Hashable, chain: Chain, block: Callable[[Notes], Block], make: Made[P], *, fresh: bool
    ) -> tuple[Program, P]:
        """The program of what ``make`` does with the ``block`` for whoever takes notes, and what it gives;
        ``what`` stands for both. ``fresh`` where it depends on what was measured.
        """
        key = (what, id(chain.steps), chain.weights, chain.site.models, shape_of(chain))
        found = None if fresh else self._found.get(key)
        if found is not None:
            return found.program_of(chain), found.made
        script = self._scripts.get(key)
        program = script and script.followed(shape_of(chain), lambda notes: make(notes, chain, block(notes)))
        if script and program and script.proven:
            return program, script.made
        traced, made, written = self._traced(key, chain, block, make, fresh)
        if script and program:
            script.proven = program.equals(traced) and made == script.made
            written = script if script.proven else None
        if script or key not in self._scripts:
            self._keep(key, written)
        return traced, made

    def _keep(self, key: Hashable, script: Script | None) -> None:
        """The last ones for whose stand-ins there is room."""
        with self._lock:
            self._forget(key)
            self._scripts[key] = script
            self._held += script.nbytes if script else 0
            while self._held > MOST_HELD:
                self._forget(next(iter(self._scripts)))

    def _forget(self, key: Hashable) -> None:
        script = self._scripts.pop(key, None)
        self._held -= script.nbytes if script else 0

    def _traced(
        self, key: Hashable, chain: Chain, block: Callable[[Notes], Block], make: Made[P], fresh: bool
    ) -> tuple[Program, P, Script | None]:
        watched = copy(chain)
        watched.shown = _Watched(**vars(chain.site))
        tracer = Tracer(shape_of(chain))
        recording = Recording(tracer)
        with tracer, recording:
            made = make(recording, watched, block(recording))
        program = tracer.program
        seen = "_seen" in object.__getattribute__(watched.shown, "__dict__")
        if not (fresh or seen or program.tables):
            self._found[key] = _Trace(chain.steps, program, _draws(tracer, chain), made)
        return program.copy(), made, None if recording.lost else Script(chain.steps, recording, made)


def _draws(tracer: Tracer, chain: Chain) -> tuple[tuple[int, int, int, int], ...]:
    places = {
        chain.draw_key(stage, position): (stage, position)
        for stage in range(len(chain.steps))
        for position in range(len(chain.site.models))
    }
    return tuple((slot, *places[key], stream) for slot, key, stream in tracer.drawn)
