"""Which statistics of which models a job needs, what they are found by, and which of them are there.

Nothing is read but rows and small files: a model is known by the digests that the Hub lists for its weights,
one in a folder by a stamp under which an earlier job has left what it read.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sqlalchemy.orm import Session

from db import artifacts, statistics
from hub.snapshot import Snapshot
from jobs.calibration import FIRST_BYTES, DataSeen, Upload, bound
from jobs.places import prefix_of
from merge.checkpoint.index import ModelIndex
from merge.learn.samples import Samples
from merge.learn.statistics import statistics_digest
from merge.plan import Plan
from merge.recipe import Recipe
from merge.recipe_calibration import CalibrationData, Data

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
            row = artifacts.dataset(session, tenant, name)
            if row is None:
                return None
            first = artifacts.start_of(session, row.id, FIRST_BYTES)
            return Upload(row.name, row.sha256, row.size, first)

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
    """What the statistics of each model are found by; a model that only reading would tell is left out."""
    found = {}
    for key, kinds in plan.statistics.needed.items():
        index, pinned = plan.models[key], inputs[key]
        model: str | None = None
        if pinned.snapshot is not None:
            model = model_digest(index, listed_sums(pinned.snapshot, prefix_of(pinned.inside), index))
        elif pinned.stamp is not None:
            model = shelf.model_of(tenant, pinned.stamp)
        if model is not None:
            samples = samples_for(plan.recipe, key, bound(plan.recipe, data, key).sha256)
            found[key] = digest_of(index, model, samples, kinds)
    return found


def samples_for(recipe: Recipe, label: str, sha256: str, texts: tuple[str, ...] = ()) -> Samples:
    """A calibration set as the recipe takes from it."""
    wanted = recipe.calibration
    return Samples(label, sha256, texts, documents=wanted.documents, tokens=wanted.tokens, rule=wanted.rule)


def digest_of(index: ModelIndex, model_sha256: str, samples: Samples, kinds: tuple[str, ...]) -> str:
    """What statistics are found by; as ``merge.learn.collect`` names them."""
    tokenizer = index.tokenizer.digest if index.tokenizer is not None else None
    return statistics_digest(model_sha256, tokenizer, samples.sha256, kinds, samples.settings)


def model_digest(index: ModelIndex, sums: Mapping[str, str]) -> str:
    """sha256 (hex) of a model's structure and of its weights, by the digests of its weight files."""
    facts = {"structure": index.digest, "weights": {name: sums[name] for name in index.shards}}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def listed_sums(snapshot: Snapshot, prefix: str, index: ModelIndex) -> dict[str, str]:
    """The digests of a Hub model's weight files, as the commit lists them."""
    files = {file.path: file.sha256 or file.git_oid for file in snapshot.files}
    return {name: files[prefix + name] for name in index.shards}


def stamp_text(stamp: Hashable) -> str:
    """A stamp as a text of fixed length."""
    return hashlib.sha256(repr(stamp).encode()).hexdigest()


def told(summary: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The plan's summary, with the data that each model is measured on and what is there already."""
    said = summary["statistics"]
    if said is None:
        return summary
    calibration, needed = plan.recipe.calibration, plan.statistics.needed
    data = {key: label_of(calibration.data_of(key)) for key in needed}
    found = sorted(set(needed) - set(plan.statistics.missing))
    return {**summary, "statistics": {**said, "found": found, "data": data}}


def label_of(data: Data) -> str:
    """Calibration data as a person would call it."""
    return data.label() if isinstance(data, CalibrationData) else data
