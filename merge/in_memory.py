"""Merges into memory, again and again, over the same models: what a search needs of each candidate.

The tensors are those that a run with the same plan would write, bit for bit; no file is made.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.reader import TensorReader
from merge.contract.groups import Held
from merge.errors import BudgetTooSmall, NotInMemory
from merge.methods import load as load_methods
from merge.plan import Plan
from merge.planning.outputs import OutputTensor
from merge.planning.sizing import Sizes
from merge.recipe.stages import ADAPTER
from merge.run import fitted_sizes
from merge.running import passes
from merge.running.blocks import kept_memory, one_torch_thread
from merge.running.chain import Block, Chain
from merge.running.crew import Crew
from merge.running.fused.spans import Writing
from merge.running.kept import Kept
from merge.running.meter import Meter
from merge.running.statistics import NOTHING, Informed, open_statistics
from merge.running.survey.measure import Surveyor
from merge.work import Work


class _NoJournal:
    """Global statistics are measured anew for every candidate, and nothing is kept."""

    shared: list[Any] | None = None

    def add_shared(self, values: list[Any]) -> None:
        """Forgets them."""


class _Keeping(TensorReader):
    """A reader that keeps every tensor as the floats that it was read as, while ``keeps`` is true."""

    keeps = False

    @cached_property
    def floats(self) -> dict[tuple[str, torch.dtype], Tensor]:
        """What was read so far, flat."""
        return {}

    @property
    def kept_bytes(self) -> int:
        """What it keeps in the end, in float32."""
        return FLOAT_BYTES * self.index.parameters if self.keeps else 0

    def forget(self) -> None:
        """Keeps nothing any more."""
        self.keeps = False
        self.floats.clear()

    def read_float(self, name: str, first: int, count: int, out: Tensor) -> None:
        """As of any reader; what is kept is read once."""
        if not self.keeps:
            super().read_float(name, first, count, out)
            return
        whole = self.floats.get((name, out.dtype))
        if whole is None:
            whole = torch.empty(self.index.tensors[name].numel, dtype=out.dtype)
            super().read_float(name, 0, whole.numel(), whole)
            self.floats[name, out.dtype] = whole
        out.view(-1)[:count].copy_(whole[first : first + count])


class _Recalling(Work):
    """The arithmetic of one candidate, which recalls what an earlier one has worked out."""

    def __init__(self, kept: Kept, plan: Plan, *parts: Any, **others: Any) -> None:
        super().__init__(plan, *parts, **others)
        self._kept = kept
        for chain in self._chains.values():
            if self._known(chain):
                for task in chain.tasks:  # nobody will ask for their values
                    task.rounds_done = task.stat.rounds

    def _recalls(self, chain: Chain) -> bool:
        return chain.scales and chain.entries > 0 and not self._has_data(chain)

    def _has_data(self, chain: Chain) -> bool:
        return bool(self._informed.get(chain.site.name, NOTHING).parts())

    def _recall(self, chain: Chain, place: Hashable, facts: Hashable, make: Callable[[], Held]) -> Held:
        """Keeps what a change was made of once a change has been of no more use: where candidates differ in a
        factor alone, the change is enough.
        """
        name, at = chain.site.name, (chain.site.name, place)
        if self._kept.holds(at) or self._kept.holds(name) or not self._recalls(chain):
            return self._kept.recall(at, (chain.origins, *self._read(name), facts), make)
        return make()

    def _read(self, name: str) -> tuple[Hashable, ...]:
        return self._outputs[name].inputs, self._inputs.dtype

    def _known(self, chain: Chain) -> bool:
        return self._recalls(chain) and self._kept.knows(chain.site.name, self._facts(chain))

    def _facts(self, chain: Chain) -> Hashable:
        return chain.facts, *self._read(chain.site.name)

    def _block(self, chain: Chain, first: int, count: int, base_alone: bool = False) -> Block:
        block = replace(super()._block(chain, first, count, base_alone), draws=self._kept.draws)
        alone = count == chain.entries and not chain.shares and not self._has_data(chain)
        return replace(block, recall=partial(self._recall, chain)) if alone else block

    def _computed(self, chain: Chain, first: int, count: int) -> Tensor:
        if not (self._recalls(chain) if count == chain.entries else self._known(chain)):
            return super()._computed(chain, first, count)

        def make() -> Tensor:
            whole = self._block(chain, 0, chain.entries)
            passes.settle(chain, whole)
            return chain.unscaled(whole)

        change = self._kept.recall(chain.site.name, self._facts(chain), make)
        (base,) = self._inputs.load(self._outputs[chain.site.name].inputs[:1], first, count)
        return (change.reshape(-1)[first : first + count] * chain.scale).add_(base.to(change.device))

    def _loop(self, chain: Chain | None, output: OutputTensor) -> Writing | None:
        return None if chain is not None and self._known(chain) else super()._loop(chain, output)


FLOAT_BYTES = 4
KEPT_SHARE = 4
"""One in so many bytes of the budget may hold models as floats, from the first on as long as they fit."""


class InMemory:
    """Holds the files of the models open; every plan is over (some of) these models. Small ones are kept as
    floats, so that no candidate reads them again.

    ``folders`` are by model key, as for ``merge.run.run``.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        budget_bytes: int,
        threads: int = 1,
        device: str = "cpu",
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        load_methods()
        self._folders = folders
        self._budget, self._threads = budget_bytes, threads
        self._device = torch.device(device)
        self._should_stop = should_stop
        self._kept = Kept(0)
        self._readers: dict[str, _Keeping] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(kept_memory())  # given back at the end, not for every candidate to fault in
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def tensors(
        self, plan: Plan, statistics: Mapping[str, Path] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the result with its name, in the dtype in which it would be stored.

        Raises ``NotInMemory`` for a plan that must be written, and what ``merge.run.run`` raises.
        """
        reason = plan.written_because
        if reason is not None:
            raise NotInMemory(f"This recipe cannot be merged into memory: {reason}.")
        readers = {key: self._reader(key, plan) for key in plan.models if key in self._folders}
        with ExitStack() as stack:
            stack.enter_context(one_torch_thread())
            measured = open_statistics(plan.statistics.folders, statistics or {})
            informed = Informed(
                {key: stack.enter_context(held) for key, held in measured.items()},
                {key: index.config for key, index in plan.models.items()},
            )
            meter = Meter(plan, lambda _: None, self._should_stop)
            fitted = self._fitted(plan)
            crew = stack.enter_context(Crew(fitted.threads))
            unseen = Surveyor("none", len(plan.outputs))
            parts = (readers, crew, fitted, meter, self._device, unseen, None, informed)
            work = _Recalling(self._kept, plan, *parts, digests=False)
            work.measure_global(_NoJournal())
            for batch in work.ready(plan.outputs):
                for output in batch:
                    made = torch.empty(prod(output.shape), dtype=torch_dtype(output.dtype))
                    for first, entries in work.entries(output, 0, made.numel()):
                        made[first : first + entries.numel()] = entries.reshape(-1)
                    yield output.name, made.reshape(output.shape)

    def _reader(self, key: str, plan: Plan) -> _Keeping:
        if key not in self._readers:
            adapter = self._folders.get(key + ADAPTER)
            made = _Keeping(self._folders[key], plan.models[key], adapter, (None, None))
            self._stack.enter_context(made)
            self._readers[key] = made
            floats = FLOAT_BYTES * plan.models[key].parameters
            made.keeps = floats + self._kept_bytes <= self._budget // KEPT_SHARE
        return self._readers[key]

    @property
    def _kept_bytes(self) -> int:
        return sum(reader.kept_bytes for reader in self._readers.values())

    def _fitted(self, plan: Plan) -> Sizes:
        try:
            whole = all(reader.keeps for reader in self._readers.values())
            self._kept.most_bytes = self._budget // KEPT_SHARE - self._kept_bytes if whole else 0
            held = self._kept_bytes + self._kept.most_bytes
            return fitted_sizes(plan, self._budget, self._threads, held)
        except BudgetTooSmall:
            for reader in self._readers.values():
                reader.forget()
            self._kept = Kept(0)
            return fitted_sizes(plan, self._budget, self._threads, 0)
