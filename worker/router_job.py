"""The story of a job that teaches a bundle's router by labelled texts: plan, download the base, learn, keep.

The result is a folder of two small files, which work in the bundle's folder or beside it.
"""

from dataclasses import dataclass
from typing import Any

from db.models.job import Job
from hub.snapshot import Hub
from jobs import lifecycle
from jobs.kinds import Asking, PlannedModels, plan_order
from jobs.places import prefix_of
from jobs.planning import Planner
from jobs.request import RouterRequest
from merge.bundle.router import FACTS, Place, save, told_of, train
from worker.artifacts import artifact_folder, keep
from worker.context import JobContext
from worker.inputs import fetch
from worker.scratch import WorkFolder, ensure_room
from worker.workshop import Workshop


@dataclass
class RouterJob:
    """One attempt. ``request`` is the caller's order, its bundle pinned as far as is known."""

    workshop: Workshop
    job: Job
    request: RouterRequest
    context: JobContext
    work: WorkFolder
    planner: Planner
    hub: Hub
    token: str | None

    def run(self) -> dict[str, Any]:
        """Does the whole job; returns its result as the caller will see it."""
        kept = artifact_folder(self.workshop.settings.data_dir, self.job.id)
        if not kept.exists():
            self._learn(self._plan())
            self.context.enter("finalising")
            keep(self.work.output, kept)
        size = sum(path.stat().st_size for path in kept.iterdir())
        self.context.write(lifecycle.record_artifact, "folder", str(kept), size=size)
        return {"folder": str(kept), "bytes": size, "router": told_of(kept / FACTS)}

    def _plan(self) -> PlannedModels:
        self.context.checkpoint()
        planned = plan_order(self.request, Asking(self.planner, self.token, self.job.tenant_id))
        assert isinstance(planned, PlannedModels)
        if self.job.plan is None:
            self.context.write(lifecycle.record_inputs, [each.row() for each in planned.inputs])
            self.context.write(lifecycle.record_plan, planned.summary, planned.queue)
        return planned

    def _learn(self, planned: PlannedModels) -> None:
        """From what the base holds of every text."""
        self.context.enter("downloading")
        (base,) = planned.inputs
        index, folder = planned.models[base.role], base.folder
        if base.snapshot is not None:
            ensure_room(self.work, base.size_bytes, free=self.workshop.free_bytes)
            fetch(self.hub, base, None, self.work, self.context)
            fetch(self.hub, base, index.shards, self.work, self.context)
            folder = self.work.inputs / base.role / prefix_of(base.inside)
        assert folder is not None  # an input is in a repository or in a folder
        self.context.enter("measuring")
        place = Place(index, folder, dict.fromkeys(planned.subject["members"]))
        examples = [(each.text, each.member) for each in self.request.examples]
        router = train(place, examples, self.context.checkpoint)
        self.work.output.mkdir(parents=True, exist_ok=True)
        save(router, self.work.output)
