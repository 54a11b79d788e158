"""The merged tensors of one block after the other, as a run of the same plan will make them (RegMean++)."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial as bound
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from merge.contract.informed import JOINT
from merge.joint.job import Job
from merge.joint.weights import Made, OnDisk
from merge.learn.skeleton import Weights
from merge.learn.through import KIND, Traveller, through
from merge.planning.outputs import OutputTensor
from merge.planning.sizing import MOST_BLOCK_ELEMENTS, Sizes
from merge.running.meter import Meter
from merge.running.statistics import Informed, Measured
from merge.running.survey.measure import Surveyor
from merge.stage_reader import Alone
from merge.work import Work


def go_through(job: Job) -> None:
    """Measures ``gram_merged`` of every source."""
    keys = list(job.plan.statistics.joint)
    missing = [key for key in keys if not job.finished(key)]
    if not missing:
        return
    merger = BlockMerger(job)
    models = {key: _traveller(job, key, merger, job.outs[missing[0]].parent) for key in keys}
    tokens = sum(each.batches.tokens for each in models.values())

    def on_block(block: str, done: int, total: int, now: int) -> None:
        job.tell(keys[0], block, done, total, now, tokens)

    through(models, merger.merge, device=job.device, check=job.check, on_block=on_block)
    for key in reversed(models):  # the first has the journal, which is needed until the others are done
        if key in missing:
            job.finish(key, models[key].partial)
        else:
            shutil.rmtree(models[key].partial.folder)


def _traveller(job: Job, key: str, merger: "BlockMerger", folder: Path) -> Traveller:
    """A model on its way; one whose statistics are there goes along, since the others are merged with it."""
    skeleton = job.skeleton(key)
    batches = job.batches(key, skeleton)
    again = folder / f"{job.digests[key]}.again" if job.finished(key) else None
    partial = job.partial(key, batches, again)
    partial.note()  # a folder without a journal is begun anew
    return Traveller(skeleton, job.own(key), merger.outside(key, partial.folder), batches, partial)


class BlockMerger:
    """Merges tensors when the Gram matrices of their block are there."""

    def __init__(self, job: Job) -> None:
        plan = job.plan
        self._job = job
        self._inputs = {key: job.inputs_of(key) for key in plan.statistics.joint}
        self._configs = {key: index.config for key, index in plan.models.items()}
        alone = Sizes(MOST_BLOCK_ELEMENTS, 1, 1, 0)
        meter = Meter(plan, lambda _: None, job.should_stop)
        unseen = Surveyor("none", len(plan.outputs))
        nothing = self._informed({key: [] for key in plan.statistics.joint})
        self._work = Work(plan, job.readers, Alone(), alone, meter, job.device, unseen, None, nothing)

    def merge(self, files: Mapping[str, Path], names: Mapping[str, Sequence[str]]) -> Mapping[str, Weights]:
        """The tensors of a block, by what each model calls them."""
        outputs = {
            output.name: output
            for key, own in names.items()
            for name in own
            if (output := self._inputs[key].get(name)) is not None
        }
        self._work.inform(self._informed({key: [path] for key, path in files.items()}), outputs.values())
        made: dict[str, Tensor] = {}
        for batch in self._work.ready(list(outputs.values())):
            made |= {output.name: self._whole(output) for output in batch}
        return {
            key: Made(
                {
                    name: bound(made.__getitem__, output.name)
                    for name in names[key]
                    if (output := self._inputs[key].get(name)) is not None
                },
                self._job.own(key),
            )
            for key in names
        }

    def outside(self, key: str, folder: Path) -> Weights:
        """All merged tensors as they are without any Gram matrix, which those outside the blocks never
        have.
        """
        own = self._inputs[key]
        made: dict[str, Callable[[], Tensor]] = {
            name: bound(self._alone, output) for name, output in own.items()
        }
        return OnDisk(Made(made, self._job.own(key)), folder / "outside")

    def _alone(self, output: OutputTensor) -> Tensor:
        for _ in self._work.ready([output]):
            pass
        return self._whole(output)

    def _whole(self, output: OutputTensor) -> Tensor:
        return self._work.merged(output, 0, prod(output.shape)).view(output.shape).clone()

    def _informed(self, files: Mapping[str, Sequence[Path]]) -> Informed:
        grown: dict[str, Measured] = {key + JOINT: StageFiles(key, own) for key, own in files.items()}
        return Informed({**self._job.known, **grown}, self._configs)


class StageFiles:
    """What was measured of a model in some of its blocks; of other tensors nothing is known."""

    def __init__(self, label: str, paths: Sequence[Path]) -> None:
        self.label = label
        self.twins: Mapping[str, str] = {}
        self.names: dict[str, tuple[int, ...]] = {f"{KIND}/": (0,)}
        self._axis: dict[str, int] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        for path in paths:
            self._open(path)

    def _open(self, path: Path) -> None:
        with safe_open(path, framework="pt") as held:
            facts: dict[str, Any] = json.loads(held.metadata()["facts"])
            stored = {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
        shared = {f"{KIND}/{name}": f"{KIND}/{of}" for name, of in facts["shared"].items()}
        for name, of in {**{name: name for name in stored if name != "none"}, **shared}.items():
            self.names[name], self._places[name] = stored[of], (path, of)
        self.twins = {**shared, **{of: of for of in shared.values()}}
        self._axis |= facts["axis"]

    def read(self, name: str, first: int, count: int) -> Tensor:
        """Entries of one statistic, flat, float32."""
        path, stored = self._places[name]
        with safe_open(path, framework="pt") as held:
            found: Tensor = held.get_tensor(stored)
        return found.reshape(-1)[first : first + count]

    def axis(self, tensor: str) -> int | None:
        """As the file says."""
        return self._axis.get(tensor)
