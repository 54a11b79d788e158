"""Trains the region of a source (Localize-and-Stitch); see ``merge.joint.masks``."""

from dataclasses import dataclass
from functools import partial as partial_of

from torch import Tensor

from merge.checkpoint.header import FLOAT_DTYPES
from merge.joint.job import Job, whole
from merge.joint.masks import Sums, Training, first, masked, start, step
from merge.joint.weights import Made, Scores
from merge.learn.backward import Backward
from merge.learn.batches import Batches
from merge.learn.findings import Findings
from merge.learn.losses import FOLLOWING
from merge.learn.partial import Partial
from merge.learn.skeleton import Skeleton
from merge.planning.outputs import OutputTensor
from merge.planning.together import asking

KIND = "mask"
_SAVED_BYTES = 64 << 20


def train(job: Job, key: str) -> None:
    """Measures ``mask`` of the source ``key``."""
    if job.finished(key):
        return
    skeleton = job.skeleton(key)
    batches = job.batches(key, skeleton)
    partial = job.partial(key, batches)
    trainer = _Trainer(job, key, skeleton, batches, partial)
    job.either_way(key, trainer.run, partial.clear)
    inside, entries = trainer.counts
    job.finish(
        key, partial, f"The region has {inside} of {entries} entries ({inside / max(entries, 1):.1%})."
    )


@dataclass
class _Trainer:
    """The scores of one source, epoch by epoch; those before an epoch and those after it lie in two files."""

    job: Job
    key: str
    skeleton: Skeleton
    batches: Batches
    partial: Partial

    def __post_init__(self) -> None:
        plan = self.job.plan
        self._outputs: dict[str, OutputTensor] = {}
        self._of: dict[str, Training] = {}
        for output, knobs in asking(plan.outputs, plan.steps, KIND):
            own = next((each.tensor for each in output.sources if each.model == self.key), None)
            if own is not None and plan.models[self.key].tensors[own].dtype in FLOAT_DTYPES:
                self._outputs[own], self._of[own] = output, Training(**knobs)
        shapes = {name: output.shape for name, output in self._outputs.items()}
        self.counts = (0, 0)
        self._scores = [Scores(self.partial.folder / f"scores-{side}.bin", shapes) for side in "ab"]

    def run(self, all_at_once: bool) -> None:
        """All epochs that are not done yet, and the region that they end with."""
        facts = self.partial.facts
        if "epochs" not in facts:
            start(self._scores[0], self._pair, self._of)
            self.partial.note(epochs=0)
        for epoch in range(int(facts.get("epochs", 0)), first(self._of).epochs):
            self._epoch(epoch, all_at_once)
        self._save(self._scores[first(self._of).epochs % 2])

    def _epoch(self, epoch: int, all_at_once: bool) -> None:
        before, after = self._scores[epoch % 2], self._scores[(epoch + 1) % 2]
        name, of = f"{KIND}-{epoch:04}", first(self._of)
        after.copy_(before)

        def update(_: int, values: dict[str, Tensor], total: int) -> None:
            for tensor, gradient in self.skeleton.unconverted(values).items():
                if tensor in self._of:
                    base, source = self._pair(tensor)
                    moved = step(before[tensor], gradient / total, source - base, self._of[tensor])
                    after[tensor].copy_(moved)

        def on_group(done: int, total: int, now: int) -> None:
            # One note: an epoch that is begun anew would find its groups done, and change nothing.
            self.partial.note(epochs=epoch + (done == total), **{name: done})
            tokens = self.batches.tokens * of.epochs
            self.job.tell(self.key, name, epoch * total + done, of.epochs * total, now, tokens)

        Backward(
            name=name,
            loss=FOLLOWING,
            skeleton=self.skeleton,
            weights=masked(before, self._pair, self._unmasked()),
            batches=self.batches,
            folder=self.partial.folder,
            seed=self.job.samples[self.key].seed,
            device=self.job.device,
            whole=all_at_once,
            check=self.job.check,
        ).run(Sums(), int(self.partial.facts.get(name, 0)), on_group, update)

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        output = self._outputs[name]
        assert output.base is not None  # the method needs a base
        readers = self.job.readers
        return whole(readers["base"], output.base.tensor), whole(readers[self.key], name)

    def _unmasked(self) -> Made:
        """Tensors without a region are the base's, where it has them."""
        base, own = self.job.readers["base"], self.job.plan.models[self.key]
        shared = {
            name: partial_of(whole, base, name)
            for name, info in own.tensors.items()
            if name not in self._of and (known := base.index.tensors.get(name)) and known.shape == info.shape
        }
        return Made(shared, self.job.own(self.key))

    def _save(self, scores: Scores) -> None:
        found, held, number = Findings(), 0, 0
        inside = entries = 0
        for name in scores.shapes:
            mask = found.tensors[f"{KIND}/{name}"] = (scores[name] > 0).float()
            held += mask.nbytes
            inside, entries = inside + int(mask.count_nonzero()), entries + mask.numel()
            if held >= _SAVED_BYTES:
                self.partial.save(f"{KIND}-{number:04}", found)
                found, held, number = Findings(), 0, number + 1
        self.partial.save(f"{KIND}-{number:04}", found)
        self.counts = inside, entries
