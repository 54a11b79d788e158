"""The phase in which models are run on texts, for methods that need to see activations or gradients.

What was measured before is found again by its digest; the rest is measured in the job's work folder, where a
later attempt goes on from the last finished block, and then moved into the store of its tenant.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from db import statistics as rows
from hub.snapshot import Hub
from jobs import recording
from jobs.pinned import PinnedInput
from jobs.places import prefix_of
from jobs.planning import Planned
from jobs.scratch import bytes_in
from jobs.statistics import (
    adapter_files,
    adapter_sums,
    digest_of,
    label_of,
    listed_sums,
    model_digest,
    models_to_know,
)
from merge.checkpoint.index import ModelIndex
from merge.contract.informed import JOINT
from merge.errors import Stopped
from merge.joint.measure import measure_joint
from merge.learn.collect import Progress, collect
from merge.learn.samples import Samples
from merge.learn.statistics import Manifest, read_manifest
from merge.recipe.calibration import Data
from merge.recipe.stages import ADAPTER
from worker.context import JobContext
from worker.datasets import read_samples
from worker.scratch import WorkFolder
from worker.statistics import Store, evict
from worker.workshop import Workshop

FOLDER = "statistics"


@dataclass
class Measurer:
    """Measures for one job. ``samples`` are the sets, read and checked before anything expensive."""

    workshop: Workshop
    tenant_id: str
    context: JobContext
    work: WorkFolder
    store: Store
    samples: Mapping[str, Samples] = field(default_factory=dict)

    def prepare(self, planned: Planned, hub: Hub) -> None:
        """Reads every set that a model is measured on; raises what ``worker.datasets`` raises."""
        read: dict[Data, Samples] = {}
        found = {}
        asked = planned.plan.statistics
        keys = (*asked.run_on, *(asked.needed if asked.joint_missing else ()))
        for key in dict.fromkeys(keys):
            data = planned.recipe.calibration.data_of(key)
            if data not in read:
                read[data] = read_samples(self.workshop, self.tenant_id, planned.recipe, data, hub)
            found[key] = read[data]
        self.samples = found

    def measure(
        self, planned: Planned, folders: Mapping[str, Path], known: Mapping[str, str]
    ) -> dict[str, Path]:
        """The folder of the statistics of each model that needs them. ``known`` are the digests of what the
        plan counts on.

        Raises what ``merge.learn.collect.collect`` raises, and ``Interrupted``.
        """
        asked = planned.plan.statistics
        if not asked.folders:
            return {}
        self.context.enter("measuring")
        found = {}
        for place, (key, kinds) in enumerate(asked.needed.items()):
            if key not in asked.missing:
                found[key] = self._found(key, known[key])
                continue
            samples = self.samples[key]
            one = self._of(planned, folders, key, kinds, samples, place, len(asked.folders))
            found[key] = self._one(one, label_of(planned.recipe.calibration.data_of(key)))
        for key in asked.joint if not asked.joint_missing else ():
            found[key + JOINT] = self._found(key, known[key + JOINT])
        if asked.joint_missing:
            found |= self._joint(planned, folders, found)
        return found

    def _of(
        self,
        planned: Planned,
        folders: Mapping[str, Path],
        key: str,
        kinds: tuple[str, ...],
        samples: Samples | None,
        place: int,
        count: int,
    ) -> "_One":
        inputs = {each.role: each for each in planned.inputs}
        adapter = inputs.get(key + ADAPTER), folders.get(key + ADAPTER)
        index = planned.plan.models[key]
        return _One(key, index, inputs[key], folders[key], samples, kinds, place, count, *adapter)

    def _one(self, one: "_One", data: str) -> Path:
        model = self._model(one)
        assert one.samples is not None  # read before anything was downloaded
        digest = digest_of(one.index, model, one.samples, one.kinds)
        with self.store.only_one(digest, self.context.checkpoint):
            if self.store.hold(digest):
                self._record(one, digest, data)
                return self._found(one.key, digest)
            began = time.monotonic()
            made = self._collect(one, digest, model)
            folder = self.store.put(digest, self.work.path / FOLDER / digest)
        self._record(one, digest, data)
        self._make_room()
        self._tell(one.key, digest, made, time.monotonic() - began, found=False)
        return folder

    def _joint(
        self, planned: Planned, folders: Mapping[str, Path], statistics: Mapping[str, Path]
    ) -> dict[str, Path]:
        """Statistics for which models are run beside each other; the first one's digest stands for all."""
        plan, kinds = planned.plan, planned.plan.statistics.joint
        ones = {
            key: self._of(planned, folders, key, kinds.get(key, ()), self.samples.get(key), 0, 1)
            for key in models_to_know(plan)
        }
        weights = {key: self._model(one) for key, one in ones.items()}
        digests = plan.joint.digests(weights, self.samples)
        with self.store.only_one(next(iter(digests.values())), self.context.checkpoint):
            held = {key: self.store.hold(digest) for key, digest in digests.items()}
            (self.work.path / FOLDER).mkdir(exist_ok=True)
            outs = {
                key: self.store.folder(digest) if held[key] else self.work.path / FOLDER / digest
                for key, digest in digests.items()
            }
            began = time.monotonic()
            made = self._side_by_side(planned, folders, statistics, outs, weights)
            for key in reversed([key for key in digests if not held[key]]):
                self.store.put(digests[key], outs[key])
        for key, digest in digests.items():
            label = label_of(planned.recipe.calibration.data_of(key))
            self._record(ones[key], digest, label)
            self._tell(key, digest, made[key], time.monotonic() - began, found=held[key])
        self._make_room()
        return {key + JOINT: self.store.folder(digest) for key, digest in digests.items()}

    def _side_by_side(
        self,
        planned: Planned,
        folders: Mapping[str, Path],
        statistics: Mapping[str, Path],
        outs: Mapping[str, Path],
        weights: Mapping[str, str],
    ) -> dict[str, Manifest]:
        keys, settings = list(outs), self.workshop.settings
        asked = planned.plan.statistics
        before = len(asked.folders) - len(keys)

        def on_progress(key: str, progress: Progress) -> None:
            together = "gram_merged" in asked.joint[key]
            place, count = (0, 1) if together else (keys.index(key), len(keys))
            self._advance(before + place, before + count, progress)

        try:
            return measure_joint(
                planned.plan,
                folders,
                self.samples,
                statistics,
                outs,
                weights,
                device=self.workshop.device,
                memory_bytes=settings.memory_budget_bytes,
                on_progress=on_progress,
                should_stop=self.context.should_stop,
            )
        except Stopped:
            self.context.checkpoint()
            raise

    def _advance(self, place: int, count: int, progress: Progress) -> None:
        """How far the measurement is that is the ``place``-th of ``count``."""
        self.context.advance(
            round((place + progress.share) * progress.tokens),
            count * progress.tokens,
            unit="tokens",
            tokens_per_second=round(progress.tokens_per_second),
            blocks_done=progress.done,
            blocks_total=progress.total,
        )

    def _collect(self, one: "_One", digest: str, model: str) -> Manifest:
        def on_progress(progress: Progress) -> None:
            self._advance(one.place, one.count, progress)

        assert one.samples is not None  # read before anything was downloaded
        (self.work.path / FOLDER).mkdir(exist_ok=True)
        try:
            return collect(
                one.folder,
                one.index,
                one.samples,
                one.kinds,
                out=self.work.path / FOLDER / digest,
                device=self.workshop.device,
                memory_bytes=self.workshop.settings.memory_budget_bytes,
                adapter_folder=one.adapter_folder,
                model_sha256=model,
                on_progress=on_progress,
                should_stop=self.context.should_stop,
            )
        except Stopped:
            self.context.checkpoint()
            raise

    def _found(self, key: str, digest: str) -> Path:
        folder = self.store.folder(digest)
        with self.workshop.transaction() as session:
            rows.touch(session, self.tenant_id, digest)
        self._tell(key, digest, read_manifest(folder), 0.0, found=True)
        return folder

    def _tell(self, key: str, digest: str, made: Manifest, seconds: float, *, found: bool) -> None:
        said = "found again, nothing measured" if found else f"{made.tokens:,} tokens in {seconds:.1f} s"
        facts: dict[str, Any] = {
            "model": key,
            "digest": digest,
            "kinds": list(made.kinds),
            "tokens": made.tokens,
            "seconds": round(seconds, 2),
            "found": found,
            "detail": f"{key}: {said}",
        }
        self.context.write(recording.record_measured, facts)

    def _record(self, one: "_One", digest: str, data: str) -> None:
        folder = self.store.folder(digest)
        made = read_manifest(folder)
        facts = {
            "kinds": list(made.kinds),
            "model": one.pinned.pinned_name,
            "model_sha256": made.model_sha256,
            "stamp": one.pinned.stamp if one.index.adapter is None else None,
            "data": data,
            "data_sha256": made.data_sha256,
            "tokens": made.tokens,
            "size": bytes_in(folder),
            "manifest": asdict(made),
        }
        with self.workshop.transaction() as session:
            rows.put(session, self.tenant_id, digest, facts)

    def _make_room(self) -> None:
        with self.workshop.transaction() as session:
            oldest = [(tenant, digest) for tenant, digest, _ in rows.oldest(session)]
        limit = self.workshop.settings.max_statistics_bytes
        for tenant, digest in evict(self.store.root, limit, oldest):
            with self.workshop.transaction() as session:
                rows.remove(session, tenant, digest)

    def _model(self, one: "_One") -> str:
        """The digest of a model's weights."""
        adapter = adapter_sums(one.index, one.adapter)
        if adapter is None:
            assert one.adapter_folder is not None  # inputs are there when models are run
            adapter = self._read(one.adapter_folder, adapter_files(one.index))
        if one.pinned.snapshot is not None:
            sums = listed_sums(one.pinned.snapshot, prefix_of(one.pinned.inside), one.index.shards)
        else:
            sums = self._read(one.folder, one.index.shards)
        return model_digest(one.index, sums, adapter)

    def _read(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        sums = {}
        for name in names:
            self.context.checkpoint()
            with (folder / name).open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return sums


@dataclass(frozen=True)
class _One:
    """A model to be measured, the ``place``-th of ``count``."""

    key: str
    index: ModelIndex
    pinned: PinnedInput
    folder: Path
    samples: Samples | None
    kinds: tuple[str, ...]
    place: int
    count: int
    adapter: PinnedInput | None = None
    adapter_folder: Path | None = None
