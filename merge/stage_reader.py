"""Stages while a merge runs: what they give is read as if it lay in a folder, and computed when it is asked
for, or written there before.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.reader import TensorReader
from merge.plan import Plan
from merge.planning.output_tensor import OutputTensor, tensors_read
from merge.planning.stages import Stage
from merge.recipe.stages import named_models, of_stage
from merge.results.finish import write_small_files
from merge.running.chain import Chain
from merge.running.crew import Crew

FOLDER = "stages"
J = TypeVar("J")


class Work(Protocol):
    """The arithmetic of a stage, as a run has it."""

    def ready(
        self, outputs: Sequence[OutputTensor], crew: Crew | None = None
    ) -> Iterator[Sequence[OutputTensor]]:
        """The outputs some at a time, each when its statistics are there."""

    def chain_of(self, output: OutputTensor) -> Chain | None:
        """The steps bound to this tensor; ``None`` where it is taken over."""

    def forget(self, outputs: Sequence[OutputTensor]) -> None:
        """Lets go of what was measured of these alone."""

    def entries(self, output: OutputTensor, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
        """Entries as they are written, part by part, each with its first."""


class Alone(Crew):
    """Does the jobs on the thread that asks."""

    def __init__(self) -> None:
        pass

    def each(self, jobs: Iterable[J], work: Callable[[J], None]) -> None:
        """Does ``work`` on every job."""
        for job in jobs:
            work(job)


class Computed:
    """The tensors of one stage, computed block by block; any number of threads may read.

    What has to be measured of a tensor is measured once: before, by ``prepare``, or by the first who reads.
    """

    def __init__(self, plan: Plan, work: Work) -> None:
        self._work = work
        placed = {name: info for shard in plan.shards for name, info in shard.entries.items()}
        outputs = {output.name: output for output in plan.outputs}
        self._outputs = {(info.file, info.begin, info.end): outputs[name] for name, info in placed.items()}
        self._measured: set[str] = set()
        self._lock = threading.Lock()

    def prepare(self, infos: Iterable[TensorInfo], crew: Crew) -> None:
        """Measures what is needed before these can be read."""
        outputs = [self._of(info) for info in infos]
        with self._lock:
            wanted = [output for output in outputs if output.name not in self._measured]
            for batch in self._work.ready(wanted, crew):
                self._measured |= {output.name for output in batch}

    def forget(self, infos: Iterable[TensorInfo]) -> None:
        """Lets go of what was measured of these; before they are read again, it is measured again."""
        outputs = [self._of(info) for info in infos]
        with self._lock:
            self._measured -= {output.name for output in outputs}
            self._work.forget(outputs)

    def read(self, info: TensorInfo, first: int, count: int, out: Tensor) -> None:
        """Entries ``first`` to ``first + count``, rounded as if they were written, in ``out``'s dtype."""
        output = self._of(info)
        if output.name not in self._measured:
            self.prepare([info], Alone())
        chain = self._work.chain_of(output)
        unit = chain.piece if chain is not None and chain.granularity == "row" else 1
        begin = first // unit * unit
        end = min(prod(output.shape), -(-(first + count) // unit) * unit)
        flat = out.view(-1)[:count]
        for at, made in self._work.entries(output, begin, end - begin):
            low, high = max(at, first), min(at + made.numel(), first + count)
            flat[low - first : high - first].copy_(made[low - at : high - at])

    def _of(self, info: TensorInfo) -> OutputTensor:
        return self._outputs[info.file, info.begin, info.end]


class StageReader(TensorReader):
    """Reads what a stage gives; ``folder`` has its small files only."""

    def __init__(self, folder: Path, index: ModelIndex, computed: Computed) -> None:
        super().__init__(folder, index)
        self._computed = computed

    def prepare(self, names: Iterable[str], crew: Crew) -> None:
        """Measures, with a crew, what is needed before these tensors can be read."""
        self._computed.prepare([self.index.tensors[name] for name in names], crew)

    def forget(self, names: Iterable[str]) -> None:
        """Lets go of what was measured to make these tensors."""
        self._computed.forget([self.index.tensors[name] for name in names])

    def read_into(self, info: TensorInfo, first: int, count: int, out: Tensor) -> None:
        """Entries as they would be stored."""
        self._computed.read(info, first, count, out)

    def read_float(self, name: str, first: int, count: int, out: Tensor) -> None:
        """Entries as the float dtype of ``out``, rounded to their own before."""
        self._computed.read(self.index.tensors[name], first, count, out)

    def plain(self, name: str) -> TensorInfo | None:  # noqa: ARG002
        """Never: nothing lies in a file."""
        return None


def prepare_given(readers: Mapping[str, TensorReader], outputs: Sequence[OutputTensor], crew: Crew) -> None:
    """Has the stages measured that these outputs are made from."""
    for reader, names in _given(readers, outputs):
        reader.prepare(names, crew)


def forget_given(readers: Mapping[str, TensorReader], outputs: Sequence[OutputTensor]) -> None:
    """Has them let go of it."""
    for reader, names in _given(readers, outputs):
        reader.forget(names)


def _given(
    readers: Mapping[str, TensorReader], outputs: Sequence[OutputTensor]
) -> list[tuple[StageReader, list[str]]]:
    """What stages give to these outputs."""
    if not any(isinstance(reader, StageReader) for reader in readers.values()):
        return []
    read = [(readers[key], sorted(names)) for key, names in tensors_read(outputs).items()]
    return [(reader, names) for reader, names in read if isinstance(reader, StageReader)]


@dataclass(frozen=True)
class Lent:
    """What stages give to one merge, by the keys of its models: readers, folders with the small files, and
    the bytes of memory that they take a thread.
    """

    readers: Mapping[str, TensorReader] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    held_bytes: int = 0


Write = Callable[[str, Mapping[str, Path], Path, Lent], object]
MakeWork = Callable[[Stage, Mapping[str, TensorReader]], Work]


class Stages:
    """The stages of a run, whose files lie under ``at``; readers and folders are those of all models of the
    recipe and of its stages.

    ``write`` merges a stage into a folder, ``make`` makes the arithmetic of one that is computed.
    """

    def __init__(
        self,
        plan: Plan,
        readers: Mapping[str, TensorReader],
        folders: Mapping[str, Path],
        at: Path,
        stack: ExitStack,
    ) -> None:
        self._plan = plan
        self._readers = readers
        self._folders = folders
        self._at = at
        self._stack = stack
        self._computed: dict[str, Computed] = {}

    def open(self, write: Write, make: MakeWork) -> None:
        """Goes through the stages, each after those that it uses."""
        for name, stage in self._plan.staged.stages.items():
            lent = self.lent(stage.plan)
            folders = {**of_stage(self._folders, name), **lent.folders}
            at = self._at / name
            if stage.why is not None:
                write(name, folders, at, lent)
                continue
            at.mkdir(parents=True, exist_ok=True)
            write_small_files(stage.plan, folders, at)
            readers = {**of_stage(self._readers, name), **lent.readers}
            self._computed[name] = Computed(stage.plan, make(stage, readers))

    def lent(self, plan: Plan) -> Lent:
        """What the stages that are open give to a plan."""
        used = {each.role: each.stage for each in named_models(plan.recipe) if each.stage is not None}
        readers = {role: self._reader(name, plan.models[role]) for role, name in used.items()}
        folders = {role: self._at / name for role, name in used.items()}
        return Lent(readers, folders, self._plan.staged.held_bytes(plan.recipe))

    def _reader(self, name: str, index: ModelIndex) -> TensorReader:
        computed, at = self._computed.get(name), self._at / name
        made = TensorReader(at, index) if computed is None else StageReader(at, index, computed)
        return self._stack.enter_context(made)
