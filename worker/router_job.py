"""The story of a job that makes a bundle's router, by labelled texts or from weights alone: plan, download
what is read, learn, keep.

The result is a folder of two small files, which work in the bundle's folder or beside it.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import recording
from jobs.asking import PlannedModels
from jobs.pinned import PinnedInput
from jobs.places import prefix_of
from jobs.request import RouterRequest
from merge.bundle.gate import DIRECTIONS, gate_files, gate_weight
from merge.bundle.router import FACTS, Place, Router, gate, save, told_of, train
from merge.checkpoint.reader import TensorReader
from merge.recipe.stages import ADAPTER
from worker.artifacts import artifact_folder, keep
from worker.attempt import Attempt
from worker.inputs import fetch
from worker.scratch import ensure_room


@dataclass
class RouterJob(Attempt):
    """One attempt. ``request`` is the caller's order, its bundle pinned as far as is known."""

    request: RouterRequest

    def run(self) -> dict[str, Any]:
        """Does the whole job; returns its result as the caller will see it."""
        kept = artifact_folder(self.workshop.settings.data_dir, self.job.id)
        if not kept.exists():
            planned = self.plan_again(self.request, PlannedModels)
            router = self._compare(planned) if self.request.examples is None else self._learn(planned)
            self.work.output.mkdir(parents=True, exist_ok=True)
            save(router, self.work.output)
            self.context.enter("finalising")
            keep(self.work.output, kept)
        size = sum(path.stat().st_size for path in kept.iterdir())
        self.context.write(recording.record_artifact, "folder", str(kept), size=size)
        return {"folder": str(kept), "bytes": size, "router": told_of(kept / FACTS)}

    def _learn(self, planned: PlannedModels) -> Router:
        """From what the base holds of every text."""
        index = planned.models["base"]
        folders = self._bring(planned, {"base": set(index.shards)})
        self.context.enter("measuring")
        place = Place(index, folders["base"], dict.fromkeys(planned.subject["members"]))
        examples = [(each.text, each.member) for each in self.request.examples or ()]
        return train(place, examples, self.context.checkpoint)

    def _compare(self, planned: PlannedModels) -> Router:
        """From one weight of the base and every member's."""
        base = planned.models["base"]
        layer, name = gate_weight(base, self.request.layer)
        members = {member: planned.models[member] for member in planned.subject["members"]}
        folders = self._bring(planned, gate_files(base, members, name))
        self.context.enter("measuring")
        with ExitStack() as stack:
            readers = {
                member: stack.enter_context(TensorReader(folders["base"], index, folders[member]))
                for member, index in members.items()
            }
            place = Place(base, folders["base"], readers)
            return gate(place, layer=layer, directions=self.request.directions or DIRECTIONS)

    def _bring(self, planned: PlannedModels, files: Mapping[str, set[str]]) -> dict[str, Path]:
        """The folders of models, and of adapters under the names of their models, with these weight files."""
        self.context.enter("downloading")
        ensure_room(self.work, planned.summary["estimate"]["download_bytes"], free=self.workshop.free_bytes)
        wanted: dict[str, set[str]] = {}
        first: dict[str, PinnedInput] = {}
        for each in planned.inputs:
            first.setdefault(each.pinned_name, each)
            wanted.setdefault(each.pinned_name, set()).update(files[each.role.removesuffix(ADAPTER)])
        return {
            each.role.removesuffix(ADAPTER): self._folder(first[each.pinned_name], wanted)
            for each in planned.inputs
        }

    def _folder(self, each: PinnedInput, wanted: Mapping[str, set[str]]) -> Path:
        if each.snapshot is None:
            assert each.folder is not None  # an input is in a repository or in a folder
            return each.folder
        fetch(self.hub, each, None, self.work, self.context)
        fetch(self.hub, each, sorted(wanted[each.pinned_name]), self.work, self.context)
        return self.work.inputs / each.role / prefix_of(each.inside)
