"""The phase in which models are run on texts, for methods that need to see activations or gradients.

What was measured before is found again by its digest; the rest is measured in the job's work folder, where a
later attempt goes on from the last finished block, and then moved into the store of its tenant.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from db import statistics as rows
from hub.snapshot import Hub
from jobs import lifecycle
from jobs.places import prefix_of
from jobs.planning import PinnedInput, Planned
from jobs.statistics import digest_of, label_of, listed_sums, model_digest
from merge.checkpoint.index import ModelIndex
from merge.errors import Stopped
from merge.learn.collect import Progress, collect
from merge.learn.samples import Samples
from merge.learn.statistics import Manifest, read_manifest
from merge.recipe_calibration import Data
from worker.context import JobContext
from worker.datasets import read_samples
from worker.scratch import WorkFolder, bytes_in
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
        for key in planned.plan.statistics.missing:
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
        needed = planned.plan.statistics.needed
        if not needed:
            return {}
        self.context.enter("measuring")
        inputs = {each.role: each for each in planned.inputs}
        found = {}
        for place, key in enumerate(needed):
            if key not in planned.plan.statistics.missing:
                found[key] = self._found(key, known[key])
                continue
            index, sample = planned.plan.models[key], self.samples[key]
            one = _One(key, index, inputs[key], folders[key], sample, needed[key], place, len(needed))
            found[key] = self._one(one, label_of(planned.recipe.calibration.data_of(key)))
        return found

    def _one(self, one: "_One", data: str) -> Path:
        sums = self._sums(one)
        model = model_digest(one.index, sums)
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

    def _collect(self, one: "_One", digest: str, model: str) -> Manifest:
        def on_progress(progress: Progress) -> None:
            self.context.advance(
                one.place * progress.tokens + progress.tokens * progress.done // progress.total,
                one.count * progress.tokens,
                unit="tokens",
                tokens_per_second=round(progress.tokens_per_second),
                blocks_done=progress.done,
                blocks_total=progress.total,
            )

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
        self.context.write(lifecycle.record_measured, facts)

    def _record(self, one: "_One", digest: str, data: str) -> None:
        folder = self.store.folder(digest)
        made = read_manifest(folder)
        facts = {
            "kinds": list(made.kinds),
            "model": one.pinned.pinned_name,
            "model_sha256": made.model_sha256,
            "stamp": one.pinned.stamp,
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

    def _sums(self, one: "_One") -> dict[str, str]:
        pinned = one.pinned
        if pinned.snapshot is not None:
            return listed_sums(pinned.snapshot, prefix_of(pinned.inside), one.index)
        sums = {}
        for name in one.index.shards:
            self.context.checkpoint()
            with (one.folder / name).open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return sums


@dataclass(frozen=True)
class _One:
    """A model to be measured, the ``place``-th of ``count``."""

    key: str
    index: ModelIndex
    pinned: PinnedInput
    folder: Path
    samples: Samples
    kinds: tuple[str, ...]
    place: int
    count: int
