"""Merges into memory, again and again, over the same models: what a search needs of each candidate.

The tensors are those that a run with the same plan would write, bit for bit; no file is made.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from merge.blocks import Crew, kept_memory, torch_threads
from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.reader import TensorReader
from merge.errors import NotInMemory
from merge.meter import Meter
from merge.methods import load as load_methods
from merge.plan import Plan
from merge.run import fitted_sizes
from merge.statistics import Informed, open_statistics
from merge.survey.measure import Surveyor
from merge.work import Work


class _NoJournal:
    """Global statistics are measured anew for every candidate, and nothing is kept."""

    shared: list[Any] | None = None

    def add_shared(self, values: list[Any]) -> None:
        """Forgets them."""


class InMemory:
    """Holds the files of the models open; every plan is over (some of) these models.

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
        self._readers: dict[str, TensorReader] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
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
            stack.enter_context(kept_memory())
            stack.enter_context(torch_threads(1))
            measured = open_statistics(plan.statistics.folders, statistics or {})
            informed = Informed(
                {key: stack.enter_context(held) for key, held in measured.items()},
                {key: index.config for key, index in plan.models.items()},
            )
            meter = Meter(plan, lambda _: None, self._should_stop)
            fitted = fitted_sizes(plan, self._budget, self._threads, 0)
            crew = stack.enter_context(Crew(fitted.threads))
            unseen = Surveyor("none", len(plan.outputs))
            work = Work(plan, readers, crew, fitted, meter, self._device, unseen, None, informed, False)
            work.measure_global(_NoJournal())
            for batch in work.ready(plan.outputs):
                for output in batch:
                    made = torch.empty(prod(output.shape), dtype=torch_dtype(output.dtype))
                    for first, entries in work.entries(output, 0, made.numel()):
                        made[first : first + entries.numel()] = entries.reshape(-1)
                    yield output.name, made.reshape(output.shape)

    def _reader(self, key: str, plan: Plan) -> TensorReader:
        if key not in self._readers:
            adapter = self._folders.get(f"{key}+adapter")
            made = TensorReader(self._folders[key], plan.models[key], adapter, (None, None))
            self._readers[key] = self._stack.enter_context(made)
        return self._readers[key]
