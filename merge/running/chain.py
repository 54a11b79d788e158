"""The steps of a recipe bound to one tensor: what must be measured first, and how a block is computed."""

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from merge.catalog import Granularity, coarsest
from merge.contract.groups import DeltaGroup, Recall, Site, Statistics, Stats, TensorGroup, made_now
from merge.contract.method import Kind, Method
from merge.contract.rows import Aligned, aligned_with, beside
from merge.contract.stats import Stat, Term, deltas_of, own_delta
from merge.errors import MethodMalformed, ShapeBroken
from merge.kernels.keyed import Draws, key_of
from merge.planning.sizing import PIECE_ELEMENTS
from merge.running.tasks import Task


@dataclass(frozen=True)
class Bound:
    """A method with its params for one tensor: one a source for a prepare, a single one otherwise.

    ``label`` tells apart the draws of a method that is used twice.
    """

    method: Method
    params: tuple[Any, ...]
    label: str


@dataclass(frozen=True)
class Block:
    """Entries ``first`` onwards of one tensor, of the base (where read) and of every source, all of
    ``shape``; and where the combine takes factors, the ``change`` that it made of them.
    """

    first: int
    shape: tuple[int, ...]
    base: Tensor | None
    sources: Sequence[Tensor]
    draws: Callable[..., Any] = Draws
    statistics: Statistics = field(default_factory=dict)
    change: Tensor | None = None
    aligned: Callable[[Aligned, int, tuple[int, ...]], Any] = aligned_with
    prepared: dict[int, Sequence[Tensor]] = field(default_factory=dict)
    """The task vectors after the last prepare that was applied, by its stage."""
    recall: Recall = made_now


@dataclass
class Chain:
    """Everything needed to compute one tensor from blocks of its inputs; ``sources`` are their ids, where
    those differ from the site's models (which name tensors too, where layers are moved).
    """

    site: Site
    steps: tuple[Bound, ...]
    weights: tuple[float, ...]
    seed: int
    tasks: list[Task] = field(default_factory=list)
    known: dict[tuple[int, int | None, Any], Any] = field(default_factory=dict)
    levels: int = 0
    shown: Site | None = None
    """What methods see in place of the site, if that is another."""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if prod(self.site.shape):
            self._add_tasks()

    @cached_property
    def granularity(self) -> Granularity:
        """What must be together."""
        return coarsest(bound.method.granularity for bound in self.steps)

    @cached_property
    def on_factors(self) -> Bound | None:
        """The combine, where it works on the factors of adapters."""
        return next((bound for bound in self.steps if bound.method.needs.factors), None)

    @cached_property
    def piece(self) -> int:
        """Entries of one piece of a deterministic sum: fixed by shape and granularity, never by the block."""
        if self.granularity != "row":
            return PIECE_ELEMENTS
        return max(1, PIECE_ELEMENTS // self.whole) * self.whole

    @cached_property
    def columns(self) -> int:
        """Entries of one row."""
        return self.site.columns

    @cached_property
    def whole(self) -> int:
        """Entries that methods on rows get together: a row, or a whole matrix of a stack."""
        return max(1, prod(self.site.shape[1:])) if self.site.stacked else self.columns

    @cached_property
    def entries(self) -> int:
        """Entries of the whole tensor."""
        return prod(self.site.shape)

    def spans(self, size: int, begin: int = 0, count: int | None = None) -> Iterator[tuple[int, int]]:
        """(first, count) of blocks of about ``size`` entries, each of whole pieces; of all entries, or of
        ``count`` from ``begin`` on.
        """
        end = self.entries if count is None else begin + count
        step = self.entries if self.granularity == "tensor" else max(1, size // self.piece) * self.piece
        for first in range(begin, end, max(step, 1)):
            yield first, min(step, end - first)

    def block_shape(self, count: int) -> tuple[int, ...]:
        """The shape in which a method sees ``count`` entries."""
        if self.granularity == "element":
            return (count,)
        return (count // self.columns, self.columns) if self.granularity == "row" else self.site.shape

    def compute(self, block: Block) -> Tensor:
        """The merged entries; raises ``ShapeBroken`` where a method gives back another shape."""
        flow = _Flow(self, block)
        for stage in range(len(self.steps)):
            flow.advance(stage)
        assert flow.combined is not None  # a plan has exactly one combine
        if flow.combined.shape != torch.Size(block.shape):
            given, wanted = list(flow.combined.shape), list(block.shape)
            raise ShapeBroken(f"{self.site.name}: the method gave back shape {given} instead of {wanted}.")
        return flow.combined

    @property
    def scales(self) -> bool:
        """Whether the result is the base and a change times the setting ``scale``, on which nothing else
        depends.
        """
        return self.steps[-1].method.scaled and not self.shares

    @property
    def shares(self) -> bool:
        """Whether anything was measured over all tensors."""
        return any(task.stat.is_global(task.params) for task in self.tasks)

    @property
    def scale(self) -> float:
        """That factor."""
        return float(self.steps[-1].params[0].scale)

    @property
    def facts(self) -> Hashable:
        """All that the change before its factor depends on, but for the inputs."""
        bound = self.steps[-1]
        last = (bound.label, replace(bound.params[0], scale=1.0))
        return self.origins, self.weights, last

    @property
    def origins(self) -> Hashable:
        """All that the task vectors depend on when they are combined, but for the inputs."""
        before = itertools.takewhile(lambda each: each.method.kind is Kind.PREPARE, self.steps)
        return self.site, self.seed, tuple((each.label, each.params) for each in before)

    def unscaled(self, block: Block) -> Tensor:
        """The change before its factor: what the combine makes with factor one of a base that adds nothing,
        not even to the sign of a zero.
        """
        flow = _Flow(self, block)
        for stage in range(len(self.steps) - 1):
            flow.advance(stage)
        return flow.unscaled(len(self.steps) - 1)

    @cached_property
    def adjusts(self) -> bool:
        """Whether any step comes after the combining one."""
        return any(bound.method.kind is Kind.ADJUST for bound in self.steps)

    def combined(self, block: Block) -> Tensor:
        """The merged entries before the adjusting steps."""
        flow = _Flow(self, block)
        for stage, bound in enumerate(self.steps):
            if bound.method.kind is not Kind.ADJUST:
                flow.advance(stage)
        assert flow.combined is not None  # a plan has exactly one combine
        return flow.combined

    def prepared(self, block: Block) -> Sequence[Tensor]:
        """The task vectors as the combining step gets them; the block must have a base."""
        flow = _Flow(self, block)
        for stage, bound in enumerate(self.steps):
            if bound.method.kind is Kind.PREPARE:
                flow.advance(stage)
        return flow.current_deltas()

    def measure(self, block: Block, tasks: Sequence[Task]) -> list[list[Tensor]]:
        """What this block adds to each of the tasks; ``tasks`` come in the order of their stages."""
        found = []
        for task, values in self.quantities(block, tasks):
            added = task.stat.measure(values, task.params, self.piece, task.value)
            found.append([tensor.cpu() for tensor in added])
        return found

    def terms(self, block: Block, tasks: Sequence[Task]) -> list[list[Term]]:
        """The same in terms of what is added up, for stats that are."""
        return [
            task.stat.terms(values, task.params, task.value) for task, values in self.quantities(block, tasks)
        ]

    def quantities(self, block: Block, tasks: Sequence[Task]) -> Iterator[tuple[Task, Sequence[Tensor]]]:
        """What each task is measured on; ``tasks`` come in the order of their stages."""
        flow = _Flow(self, block)
        stage = 0
        for task in tasks:
            while stage < task.stage:
                flow.advance(stage)
                stage += 1
            yield task, flow.quantities(task)

    @cached_property
    def prepares(self) -> bool:
        """Whether any step comes before the combining one."""
        return any(bound.method.kind is Kind.PREPARE for bound in self.steps)

    def draw_key(self, stage: int, position: int) -> int:
        """The key of the draws of one step for one source."""
        return key_of(self.seed, self.site.models[position], self.site.name, self.steps[stage].label)

    def stats(self, stage: int, position: int | None, block: Block | None = None) -> Stats:
        """Measured values of one stage, by the keys the method reads them with; those that are aligned as
        they belong to the ``block``.
        """
        values = {key: value for (at, of, key), value in self.known.items() if (at, of) == (stage, position)}
        for task in self.tasks:
            if (task.stage, task.position) == (stage, position) and task.measured:
                values[task.key] = task.value
        if block is not None:
            for key, value in values.items():
                if isinstance(value, Aligned):
                    values[key] = beside(block.aligned(value, block.first, block.shape), block.sources[0])
        return Stats(values)

    def forget(self) -> None:
        """Lets go of what was measured of this tensor alone, which is made."""
        for task in self.tasks:
            if task.shared is None:
                task.rounds_done, task.so_far = 0, None

    def _add_tasks(self) -> None:
        level = 0
        for stage, bound in enumerate(self.steps):
            ends: dict[Any, int] = {None: level}
            single = bound.method.kind is Kind.PREPARE
            for key, stat in bound.method.declared().items():
                begin = max([level, *(ends.get(needed, level) for needed in stat.after)])
                for position, params in enumerate(bound.params):
                    self._add_task(stage, position if single else None, key, stat, params, begin)
                ends[key] = begin + stat.rounds
            level = max(ends.values())
        self.levels = level

    def _add_task(
        self, stage: int, position: int | None, key: Any, stat: Stat, params: Any, begin: int
    ) -> None:
        if not stat.needed(params):
            return
        count = len(self.site.models) if position is None else 1
        known = stat.known(params, count) if stat.of is None else None
        if known is not None:
            self.known[stage, position, key] = known
        else:
            self.tasks.append(Task(stage, position, key, stat, params, begin + 1))


LoadBlock = Callable[[Chain, int, int], Block]
"""Entries of all of a tensor's inputs: the first one, and how many."""


class _Flow:
    """One block on its way through the steps."""

    def __init__(self, chain: Chain, block: Block) -> None:
        self._chain = chain
        self._block = block
        self._deltas: Sequence[Tensor] | None = None
        self.combined: Tensor | None = None

    def advance(self, stage: int) -> None:
        """Applies one step."""
        bound = self._chain.steps[stage]
        function = bound.method.function
        if bound.method.kind is Kind.PREPARE:
            self._deltas = self._prepared(stage, bound)
        elif bound.method.needs.factors:
            if self._block.change is None:
                raise MethodMalformed(f"{bound.method.name} takes factors, and the block comes without any")
            self.combined = self._base() + self._block.change
        elif bound.method.kind is Kind.COMBINE:
            self.combined = function(self._group(stage), bound.params[0])
        else:
            self.combined = function(self.combined, self._group(stage), bound.params[0])

    def _prepared(self, stage: int, bound: Bound) -> Sequence[Tensor]:
        """What a prepare makes of the task vectors; once for a block that is measured and merged."""
        known = self._block.prepared
        if stage not in known:
            shape, params = self._shape_for(stage), bound.params
            made = [
                bound.method.function(delta.reshape(shape), self._own(stage, position), params[position])
                for position, delta in enumerate(self.current_deltas())
            ]
            known.clear()
            known[stage] = [delta.reshape(self._block.shape) for delta in made]
        return known[stage]

    def _shape_for(self, stage: int) -> tuple[int, ...]:
        """The block's shape as a step takes it: by rows, where another step takes the whole tensor."""
        shape, chain = self._block.shape, self._chain
        by_rows = chain.steps[stage].method.granularity == "row" and chain.granularity == "tensor"
        return (prod(shape) // chain.columns, chain.columns) if by_rows else shape

    def unscaled(self, stage: int) -> Tensor:
        """What the combine of this stage adds to the base, before its factor."""
        bound, group = self._chain.steps[stage], self._group(stage)
        nothing = torch.full_like(self._base(), -0.0)
        bare = replace(group, read_base=nothing, prepared=self.current_deltas())
        found: Tensor = bound.method.function(bare, replace(bound.params[0], scale=1.0))
        return found

    def quantities(self, task: Task) -> Sequence[Tensor]:
        """What a task is measured on, before its stage is applied."""
        if task.position is None:
            of = task.stat.of or deltas_of
            group = self._group(task.stage)
            if self.combined is not None and task.stat.of is not None:
                return task.stat.of(self.combined, group, task.params)
            return of(group, task.params)
        delta = self.current_deltas()[task.position].reshape(self._shape_for(task.stage))
        return (task.stat.of or own_delta)(delta, self._own(task.stage, task.position), task.params)

    def _base(self) -> Tensor:
        assert self._block.base is not None  # the plan refuses prepares without a base
        return self._block.base

    def current_deltas(self) -> Sequence[Tensor]:
        """The task vectors after the steps that were applied."""
        if self._deltas is None:
            self._deltas = [source - self._base() for source in self._block.sources]
        return self._deltas

    def _own(self, stage: int, position: int) -> DeltaGroup:
        chain, base = self._chain, self._base().reshape(self._shape_for(stage))
        key = chain.draw_key(stage, position)
        draws = self._block.draws(key, self._block.first, tuple(base.shape), base.device)
        stats = chain.stats(stage, position, self._block)
        site, model, weight = chain.shown or chain.site, chain.site.models[position], chain.weights[position]
        return DeltaGroup(site, model, base, weight, draws, stats, self._block.statistics)

    def _group(self, stage: int) -> TensorGroup:
        chain, block = self._chain, self._block
        known = (self._deltas, chain.stats(stage, None, block), block.statistics, block.recall)
        return TensorGroup(chain.shown or chain.site, block.sources, block.base, chain.weights, *known)
