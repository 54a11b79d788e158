"""One measurement that takes several models: what it is given, and what all kinds of it do alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from merge.checkpoint.reader import TensorReader
from merge.errors import ModelNotRun, Stopped
from merge.learn.batches import Batches, batches_of
from merge.learn.calling import NotByBlocks
from merge.learn.collect import Progress
from merge.learn.forecast import bytes_whole
from merge.learn.partial import Partial
from merge.learn.samples import Samples
from merge.learn.skeleton import Skeleton, Stored
from merge.learn.statistics import Manifest, kept
from merge.plan import Plan
from merge.planning.outputs import OutputTensor
from merge.running.statistics import StatisticsFolder

OnProgress = Callable[[str, Progress], None]
"""Told of the model that is being measured, and how far it is."""


@dataclass
class Job:
    """``readers`` are those of all models, ``known`` the statistics that were measured before, ``outs`` the
    folders to be made, all by model key; ``weights`` the digests of all models' weights.
    """

    plan: Plan
    folders: Mapping[str, Path]
    readers: Mapping[str, TensorReader]
    known: Mapping[str, StatisticsFolder]
    samples: Mapping[str, Samples]
    outs: Mapping[str, Path]
    weights: Mapping[str, str]
    device: torch.device
    memory_bytes: int | None
    on_progress: OnProgress
    should_stop: Callable[[], bool]
    _began: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raises ``Stopped`` when the caller wants that."""
        if self.should_stop():
            raise Stopped("The measurement was stopped; a later one goes on from the last finished block.")

    def finished(self, key: str) -> Manifest | None:
        """What was measured before; raises ``OutputExists`` where something else is in the way."""
        return kept(self.outs[key], self.digests[key])

    @cached_property
    def digests(self) -> dict[str, str]:
        """What each model's statistics are found by."""
        return self.plan.joint.digests(self.weights, self.samples)

    def skeleton(self, key: str) -> Skeleton:
        """The model, without weights."""
        return Skeleton(self.plan.models[key])

    def own(self, key: str) -> Stored:
        """A model's weights."""
        return Stored(self.readers[key])

    def batches(self, key: str, skeleton: Skeleton) -> Batches:
        """What a model is run on."""
        return batches_of(skeleton, self.folders[key], self.samples[key])

    def partial(self, key: str, batches: Batches, out: Path | None = None) -> Partial:
        """The folder in which a model's statistics grow, that of ``out`` where they are not the result."""
        tokenizer = self.plan.models[key].tokenizer
        manifest = Manifest(
            digest=self.digests[key],
            kinds=tuple(self.plan.statistics.joint[key]),
            model_sha256=self.weights[key],
            tokenizer_sha256=tokenizer.rules if tokenizer is not None else None,
            data_sha256=self.samples[key].sha256,
            settings=self.plan.joint.settings(key, self.weights, self.samples),
            tokens=batches.tokens,
            documents=batches.documents,
            notes=batches.notes,
        )
        return Partial(out or self.outs[key], manifest)

    def finish(self, key: str, partial: Partial, note: str | None = None) -> Manifest:
        """Gives a folder its name; ``note`` is added to those of its manifest."""
        if note is not None:
            partial.manifest = replace(partial.manifest, notes=(*partial.manifest.notes, note))
        return partial.finish(self.outs[key], self.plan.models[key].tensors)

    def tell(self, key: str, block: str, done: int, total: int, now: int, tokens: int) -> None:
        """How far a model is: ``now`` of the ``done`` parts were done by this run."""
        speed = tokens * now / total / max(time.monotonic() - self._began, 1e-9)
        self.on_progress(key, Progress(block, done, total, tokens, speed))

    def inputs_of(self, key: str) -> dict[str, OutputTensor]:
        """The outputs that a model is merged into, by the names of its own tensors."""
        return {
            each.tensor: output for output in self.plan.outputs for each in output.inputs if each.model == key
        }

    def either_way(self, key: str, run: Callable[[bool], None], again: Callable[[], None]) -> None:
        """Runs a model by blocks or, where that cannot be, whole if that fits into memory; ``again`` clears
        what was begun. Raises ``ModelNotRun``.
        """
        try:
            run(False)
        except NotByBlocks as reason:
            index, memory = self.plan.models[key], self.memory_bytes
            needed = bytes_whole(index, self.plan.statistics.joint[key])
            if memory is not None and needed > memory:
                raise ModelNotRun(
                    f"{index.label} cannot be run block by block ({reason}), and its {needed >> 20} MiB with "
                    f"gradients do not fit into the {memory >> 20} MiB that are allowed."
                ) from reason
            again()
            run(True)


def whole(reader: TensorReader, name: str) -> Tensor:
    """A whole tensor of a model, float32."""
    return Stored(reader).tensor(name)
