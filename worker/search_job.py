"""The story of a job that searches: plan, download, measure, then merge and score candidates in memory.

Every trial is a row as soon as it is scored. A later attempt, or a retry, asks the same questions and finds
the answers there.
"""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from db import trials
from db.models.job import Job
from hub.snapshot import Hub
from jobs import lifecycle
from jobs.kinds import Asking, plan_order, sets_of
from jobs.planning import Planned, Planner
from jobs.request import SearchRequest
from merge.in_memory import InMemory
from scoring.candidates import Candidates
from scoring.errors import ScoringStopped
from search.drive import Candidate, Trial, drive
from search.result import result_of
from search.trial import Told
from worker import device as devices
from worker.artifacts import artifact_folder
from worker.candidates import Bench
from worker.context import JobContext
from worker.errors import MemoryShort
from worker.inputs import bring
from worker.measuring import Measurer
from worker.merge_job import relabelled, wanted_files
from worker.scorer import Scorer
from worker.scratch import WorkFolder, ensure_room
from worker.workshop import Workshop

FILE = "search.json"
SHOWN = 64
"""Points of a front that the job's result tells; the file has all of them."""


@dataclass
class SearchJob:
    """One attempt. ``request`` is the caller's order, its recipe pinned as far as is known."""

    workshop: Workshop
    job: Job
    request: SearchRequest
    context: JobContext
    work: WorkFolder
    planner: Planner
    measurer: Measurer
    hub: Hub
    token: str | None

    def run(self) -> dict[str, Any]:
        """Does the whole job; returns its result as the caller will see it."""
        planned = self._plan()
        sets = sets_of(self.request, self.job.plan or planned.summary)
        scorer = Scorer.prepare(self.workshop, self.job.tenant_id, self.context, sets, self.hub)
        self.measurer.prepare(planned, self.hub)
        self._check_memory(planned)
        ensure_room(self.work, planned.summary["estimate"]["download_bytes"], free=self.workshop.free_bytes)
        folders = self._bring(planned)
        known = self.planner.digests(planned, self.job.tenant_id)
        statistics = self.measurer.measure(planned, folders, known)
        self.context.enter("searching")
        found = self._search(planned, folders, statistics, scorer)
        self.context.enter("finalising")
        return self._keep(found)

    def _plan(self) -> Planned:
        self.context.checkpoint()
        planned = plan_order(self.request, Asking(self.planner, self.token, self.job.tenant_id))
        assert isinstance(planned, Planned)
        if self.job.plan is None:
            self.context.write(lifecycle.record_inputs, [each.row() for each in planned.inputs])
            self.context.write(lifecycle.record_plan, planned.summary, planned.queue)
        return replace(planned, plan=relabelled(planned.plan, planned.inputs))

    def _check_memory(self, planned: Planned) -> None:
        """One model in float32 is held beside the merge."""
        needed = 4 * planned.plan.models[planned.plan.reference].parameters
        free = self.workshop.free_memory(self.workshop.device)
        if needed > free:
            raise MemoryShort(
                f"a search holds one candidate in memory, {needed} bytes, and this worker has {free} free; "
                "give the worker more memory, or search on smaller models first"
            )

    def _bring(self, planned: Planned) -> dict[str, Path]:
        """Every model, whole: candidates differ in what they read."""
        self.context.enter("downloading")
        wanted = [
            wanted_files(each.role, each.snapshot, planned.plan, each.inside, whole=True)
            for each in planned.inputs
            if each.snapshot is not None
        ]
        arrivals = bring(
            self.hub,
            wanted,
            self.work.inputs,
            planned.plan,
            streams=False,
            on_bytes=self.context.advance,
            should_stop=self.context.should_stop,
        )
        return arrivals.folders | {e.role: e.folder for e in planned.inputs if e.folder is not None}

    def _search(
        self, planned: Planned, folders: Mapping[str, Path], statistics: Mapping[str, Path], scorer: Scorer
    ) -> dict[str, Any]:
        settings, device = self.workshop.settings, self.workshop.device
        document = planned.recipe.model_dump(mode="json")
        with ExitStack() as stack:
            memory = InMemory(
                folders,
                budget_bytes=settings.memory_budget_bytes,
                threads=devices.count_threads(settings.threads),
                device=device,
                should_stop=self.context.should_stop,
            )
            bench = Bench(
                stack.enter_context(memory),
                Candidates.open(
                    folders[planned.plan.reference], scorer.tasks, device=device, per_example=True
                ),
                planned.plan.models,
                statistics,
                self.request.search.objectives,
                settings.memory_budget_bytes,
                self.context.should_stop,
            )
            journal = Rows(self.workshop, self.job.root_id)
            try:
                ended = drive(
                    self.request.search,
                    document,
                    lambda wanted: [self._one(bench, journal, each) for each in wanted],
                    journal,
                    clock=time.monotonic,
                )
            except ScoringStopped:
                self.context.checkpoint()
                raise
        return result_of(self.request.search, document, ended)

    def _one(self, bench: Bench, journal: "Rows", candidate: Candidate) -> Told:
        self.context.checkpoint()
        told = bench.told(candidate)
        journal.note(candidate, told)
        self.context.advance(journal.spent, self.request.search.budget.evaluations, unit="rows")
        return told

    def _keep(self, found: dict[str, Any]) -> dict[str, Any]:
        """The whole result as a file, its gist as the job's result."""
        folder = artifact_folder(self.workshop.settings.data_dir, self.job.id)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        kind = "front" if found["front"] else "search"
        self.context.write(lifecycle.record_artifact, kind, str(path), size=path.stat().st_size)
        gist = {key: value for key, value in found.items() if key not in ("trials", "predicted", "front")}
        return {**gist, "front": found["front"][:SHOWN], "folder": str(folder)}


class Rows:
    """The journal of a search in the database. Trials are written when they are scored, one by one."""

    def __init__(self, workshop: Workshop, root_id: str) -> None:
        self._workshop, self._root = workshop, root_id
        with workshop.transaction() as session:
            rows = trials.of_search(session, root_id)
        self._known = {(row.key, row.share): Told.of(row.told) for row in rows}
        self.spent_seconds = max((row.elapsed for row in rows), default=0.0)
        self.spent = round(sum(row.share for row in rows))
        self._count = len(rows)
        self._begun = time.monotonic() - self.spent_seconds

    def find(self, key: str, share: float) -> Told | None:
        """What an earlier attempt scored."""
        return self._known.get((key, share))

    def record(self, trial: Trial, elapsed: float) -> None:
        """Nothing more: ``note`` has written it."""

    def note(self, candidate: Candidate, told: Told) -> None:
        """Writes a trial."""
        facts = {
            "key": candidate.key,
            "share": candidate.share,
            "number": self._count,
            "point": candidate.ask.point,
            "told": told.as_dict(),
            "elapsed": time.monotonic() - self._begun,
        }
        with self._workshop.transaction() as session:
            trials.put(session, self._root, facts)
        self._count += 1
        self.spent += round(candidate.share)
