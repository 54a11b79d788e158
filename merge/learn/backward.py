"""Gradients of a model over all its sequences, group by group, added up on the disk.

Sequences go through the model in groups, so that what is kept for the way back is bounded. What a group adds
is put to the sums of the groups before it in a file for each block; a measurement that was stopped goes on
after the last finished group.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from merge.checkpoint.saving import save_tensors
from merge.learn.batches import Batch, Batches
from merge.learn.forecast import GROUP_BYTES, GROUPS
from merge.learn.gradients import Gradients, keep_every_output
from merge.learn.losses import Loss
from merge.learn.skeleton import Skeleton, Weights
from merge.learn.walk import REST, Walk

OnGroup = Callable[[int, int, int], None]
"""Called with how many groups are done (times the parts of a loss), how many there are, and how many of them
were done now.
"""
OnSum = Callable[[int, dict[str, Tensor], int], None]
"""Called with a block's place in the order, its sums by parameter (on the CPU), and the number of
sequences.
"""


class Gather(Protocol):
    """Adds up something of the gradients of one block at a time."""

    def add(self, sequence: int, name: str, gradient: Tensor, value: Tensor) -> None:
        """One sequence's gradient of one parameter, and the parameter's value."""

    def take(self) -> dict[str, Tensor]:
        """The sums by parameter, which are forgotten here."""


@dataclass
class Backward:
    """One loss of one model over all sequences; ``name`` tells its files in ``folder`` from others.
    ``terms`` is how many parts the loss has that are differentiated one by one, squares being added over all
    of them.
    """

    name: str
    loss: str
    skeleton: Skeleton
    weights: Weights
    batches: Batches
    folder: Path
    seed: int
    device: torch.device
    whole: bool
    check: Callable[[], None]
    terms: int = 1

    def run(self, gather: Gather, already: int, on_group: OnGroup, on_sum: OnSum) -> None:
        """All groups but the first ``already``, which an earlier run has done. ``on_sum`` has each block's
        sums over all sequences. Raises ``NotByBlocks``, ``NotFinite`` and what ``check`` raises.
        """
        singles = [batch.one(at) for batch in self.batches.every for at in range(batch.sequences)]
        size = self._group_size(len(singles))
        groups = range(0, len(singles), size)
        steps = len(groups) * self.terms

        def on_step(step: int) -> None:
            on_group(step + 1, steps, step + 1 - already)
            self._drop(step - 1)

        for number, first in enumerate(groups):
            begin = number * self.terms
            todo = range(max(begin, already), begin + self.terms)
            if todo:
                group = _Group(singles[first : first + size], first, begin, len(singles), steps)
                self._group(group, todo, gather, on_step, on_sum)
        self._drop(steps - 2)

    def _group(
        self, group: "_Group", steps: range, gather: Gather, on_step: Callable[[int], None], on_sum: OnSum
    ) -> None:
        scratch = self.folder / "gradients"
        shutil.rmtree(scratch, ignore_errors=True)
        with Walk(
            self.skeleton,
            self.weights,
            group.batches,
            scratch,
            device=self.device,
            whole=self.whole,
            gradients=True,
            check=self.check,
        ) as walk:
            order = keep_every_output(walk, scratch)
            for step in steps:
                term = step - group.begin
                loss = Loss(self.loss, self.skeleton, group.batches, self.seed, group.first, term)
                after = partial(self._after, group, order, step, gather, on_sum)
                Gradients(walk, loss, gather.add).run(order, after)
                on_step(step)
        shutil.rmtree(scratch, ignore_errors=True)

    def _after(
        self, group: "_Group", order: Sequence[str], step: int, gather: Gather, on_sum: OnSum, path: str
    ) -> None:
        """Puts what a block gave to the sums of the steps before."""
        place = order.index(path) if path != REST else len(order)
        values = self._added(step, place, gather.take())
        if step + 1 == group.steps:
            on_sum(place, values, group.sequences)
        else:
            save_tensors(values, self._file(place, step))

    def _added(self, step: int, place: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the sums of the steps before."""
        before = self._file(place, step - 1)
        if before.is_file():
            with safe_open(before, framework="pt") as held:
                for name in held.keys():  # noqa: SIM118 - not a mapping
                    past = held.get_tensor(name)
                    values[name] = past + values[name].cpu() if name in values else past
        return {name: value.cpu().contiguous() for name, value in values.items()}

    def _file(self, place: int, step: int) -> Path:
        return self.folder / f"{self.name}-{place:04}.{step}.sum"

    def _drop(self, step: int) -> None:
        for path in self.folder.glob(f"{self.name}-*.{step}.sum"):
            path.unlink()

    def _group_size(self, sequences: int) -> int:
        width = int(getattr(self.skeleton.config.get_text_config(), "hidden_size", 0) or 1024)
        length = max(self.batches.tokens // max(sequences, 1), 256)
        most = max(1, GROUP_BYTES // (length * width * 4))
        return min(math.ceil(sequences / GROUPS), most)


@dataclass(frozen=True)
class _Group:
    """Sequences that go through the model together, numbered from ``first``; ``begin`` is the first of their
    steps (one for each part of the loss) out of ``steps`` in all.
    """

    batches: Sequence[Batch]
    first: int
    begin: int
    sequences: int
    steps: int
