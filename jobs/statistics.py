"""Which statistics of which models a job needs, what they are found by, and which of them are there.

Nothing is read but rows and small files: a model is known by the digests that the Hub lists for its weights,
one in a folder by a stamp under which an earlier job has left what it read.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlalchemy.orm import Session

from db import artifacts, jobs, statistics
from hub.snapshot import Snapshot
from jobs.calibration import FIRST_BYTES, DataSeen, Upload, bound
from jobs.errors import ModelNameInvalid
from jobs.places import prefix_of
from merge.checkpoint.index import ModelIndex
from merge.contract.informed import JOINT
from merge.learn.samples import Samples
from merge.learn.statistics import statistics_digest
from merge.plan import Plan
from merge.recipe.calibration import CalibrationData, Data
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER

Transaction = Callable[[], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Shelf:
    """What the rows of this service say of uploads and statistics. ``is_here`` tells whether the folder of a
    digest is where this process would look for it.
    """

    transaction: Transaction
    is_here: Callable[[str, str], bool] = lambda tenant, digest: True  # noqa: ARG005

    def upload(self, tenant: str, name: str) -> Upload | None:
        """An uploaded file of the tenant's."""
        with self.transaction() as session:
            row = artifacts.use_dataset(session, tenant, name)
            if row is None:
                return None
            first = artifacts.start_of(session, row.id, FIRST_BYTES)
            return Upload(row.name, row.sha256, row.size, first)

    def results(self, tenant: str) -> Callable[[str], str | Path]:
        """Where what a job of the tenant's has made is: ``org/name@commit``, or a folder of this service.
        The function raises ``ModelNameInvalid`` where there is nothing.
        """

        def made_by(job_id: str) -> str | Path:
            with self.transaction() as session:
                job = jobs.of_tenant(session, tenant, job_id)
                state, made = (None, None) if job is None else (job.state, job.result)
            if state is None:
                raise ModelNameInvalid(f"There is no job {job_id!r} whose result could be read.")
            if not made or not (made.get("repo") or made.get("folder")):
                raise ModelNameInvalid(f"The job {job_id} is {state} and has made no model.")
            if made.get("repo"):
                return f"{made['repo']}@{made['commit']}"
            if not (folder := Path(made["folder"])).is_dir():
                raise ModelNameInvalid(f"What the job {job_id} made is no longer kept here.")
            return folder

        return made_by

    def model_of(self, tenant: str, stamp: str) -> str | None:
        """The digest of a model in a folder, if it was read before."""
        with self.transaction() as session:
            return statistics.model_of_stamp(session, tenant, stamp)

    def held(self, tenant: str, digests: Mapping[str, str]) -> frozenset[str]:
        """Those keys whose digests the tenant has statistics for."""
        with self.transaction() as session:
            known = statistics.held(session, tenant, set(digests.values()))
        return frozenset(
            key for key, digest in digests.items() if digest in known and self.is_here(tenant, digest)
        )


def queue_of(plan: Plan, gpu_from_seconds: float) -> Literal["cpu", "gpu"]:
    """The one rule of queues: a job goes to a GPU when measuring would take a CPU ``gpu_from_seconds`` or
    more; never where that is 0, since nobody may be listening there.
    """
    return "gpu" if 0 < gpu_from_seconds <= plan.statistics.seconds else plan.queue


class PinnedModel(Protocol):
    """A model of a plan: one of the Hub has a ``snapshot`` and may lie ``inside`` it, a folder a stamp."""

    @property
    def snapshot(self) -> Snapshot | None: ...
    @property
    def inside(self) -> str: ...
    @property
    def stamp(self) -> str | None: ...


def digests_of(
    plan: Plan,
    inputs: Mapping[str, PinnedModel],
    data: Mapping[str, DataSeen],
    tenant: str,
    shelf: Shelf,
) -> dict[str, str]:
    """What the folders of statistics are found by, by their keys; what only reading models would tell is left
    out.
    """
    asked, recipe = plan.statistics, plan.recipe
    models = _known_models(plan, inputs, tenant, shelf)
    keys = dict.fromkeys((*asked.needed, *asked.joint))
    seen = {key: bound(recipe, data, key) for key in keys}
    samples = {key: samples_for(recipe, key, one.sha256, lines=one.lines) for key, one in seen.items()}
    found = {
        key: digest_of(plan.models[key], models[key], samples[key], kinds)
        for key, kinds in asked.needed.items()
        if key in models
    }
    joint = plan.joint.digests(models, samples) if asked.joint else {}
    return found | {key + JOINT: digest for key, digest in joint.items()}


def _known_models(plan: Plan, inputs: Mapping[str, PinnedModel], tenant: str, shelf: Shelf) -> dict[str, str]:
    """The digests of models whose files need not be read for them."""
    found: dict[str, str | None] = {}
    for key in models_to_know(plan):
        index, pinned = plan.models[key], inputs.get(key)
        if pinned is not None and pinned.snapshot is not None:
            adapter = inputs.get(key + ADAPTER) if index.adapter is not None else None
            sums = listed_sums(pinned.snapshot, prefix_of(pinned.inside), index.shards)
            lent = adapter_sums(index, adapter)
            found[key] = None if lent is None else model_digest(index, sums, lent)
        elif pinned is not None and pinned.stamp is not None and index.adapter is None:
            found[key] = shelf.model_of(tenant, pinned.stamp)
    return {key: digest for key, digest in found.items() if digest is not None}


def models_to_know(plan: Plan) -> tuple[str, ...]:
    """The models whose weights decide what is measured."""
    asked = plan.statistics
    merged = (each.model for output in plan.outputs for each in output.inputs) if asked.joint else ()
    return tuple(dict.fromkeys((*asked.needed, *asked.joint, *merged)))


def adapter_sums(index: ModelIndex, pinned: PinnedModel | None) -> dict[str, str] | None:
    """The digests of an adapter's weight files as its commit lists them; nothing where a model has none,
    ``None`` where they must be read.
    """
    if index.adapter is None:
        return {}
    if pinned is None or pinned.snapshot is None:
        return None
    return listed_sums(pinned.snapshot, prefix_of(pinned.inside), adapter_files(index))


def adapter_files(index: ModelIndex) -> list[str]:
    """The weight files of a model's adapter."""
    files = index.adapter.files if index.adapter is not None else {}
    return [name for name in files if name.endswith(".safetensors")]


def samples_for(
    recipe: Recipe, label: str, sha256: str, texts: tuple[str, ...] = (), *, lines: bool = False
) -> Samples:
    """A calibration set as the recipe takes from it."""
    wanted = recipe.calibration.model_dump(include={"documents", "tokens", "rule"})
    return Samples(label, sha256, texts, lines=lines, **wanted)


def digest_of(index: ModelIndex, model_sha256: str, samples: Samples, kinds: tuple[str, ...]) -> str:
    """What statistics are found by; as ``merge.learn.collect`` names them."""
    tokenizer = index.tokenizer.rules if index.tokenizer is not None else None
    return statistics_digest(model_sha256, tokenizer, samples.sha256, kinds, samples.settings)


def model_digest(index: ModelIndex, sums: Mapping[str, str], adapter: Mapping[str, str]) -> str:
    """sha256 (hex) of a model's structure and of its weights, by the digests of its weight files and of its
    adapter's.
    """
    facts = {"structure": index.digest, "weights": {name: sums[name] for name in index.shards}}
    facts |= {"adapter": dict(adapter)} if adapter else {}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def listed_sums(snapshot: Snapshot, prefix: str, names: Iterable[str]) -> dict[str, str]:
    """The digests of files of a Hub model, as the commit lists them."""
    files = {file.path: file.sha256 or file.git_oid for file in snapshot.files}
    return {name: files[prefix + name] for name in names}


def stamp_text(stamp: Hashable) -> str:
    """A stamp as a text of fixed length."""
    return hashlib.sha256(repr(stamp).encode()).hexdigest()


def told(summary: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The plan's summary, with the data that each model is measured on and what is there already."""
    said = summary["statistics"]
    if said is None:
        return summary
    calibration, asked = plan.recipe.calibration, plan.statistics
    needed = dict.fromkeys((*asked.needed, *asked.joint))
    data = {key: label_of(calibration.data_of(key)) for key in needed}
    found = sorted(set(needed) - set(asked.run_on))
    return {**summary, "statistics": {**said, "found": found, "data": data}}


def label_of(data: Data) -> str:
    """Calibration data as a person would call it."""
    return data.label() if isinstance(data, CalibrationData) else data
