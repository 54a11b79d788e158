"""The story of a job that searches: plan, download, measure, then merge and score candidates, in memory or,
where that cannot be, written one at a time. The jobs that help it do the same without asking what to try.

Every trial is a row, which waits until a worker of the search has scored it. A later attempt, or a retry,
asks the same questions and finds the answers there.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from db import jobs as rows
from jobs import recording
from jobs.candidates import Way, way_of
from jobs.kinds import sets_of
from jobs.planning import Planned
from jobs.request import SearchRequest
from jobs.searching import as_sent, enlist, is_searching
from scoring.errors import ScoringStopped
from search.drive import Candidate, drive
from search.order import most
from search.result import kept_front, result_of
from search.trial import Told
from worker import device as devices
from worker.artifacts import artifact_folder
from worker.attempt import Attempt
from worker.candidates import Bench
from worker.errors import MemoryShort
from worker.inputs import bring, wanted_files
from worker.known import KnownCandidates, base_of
from worker.makers import Ground, Sets
from worker.measures import Heads
from worker.merge_job import relabelled
from worker.scorer import Scorer
from worker.scratch import ensure_room
from worker.trials import Rows

T = TypeVar("T")

FILE = "search.json"
POLL_SECONDS = 0.1
"""Between two looks at trials that others score."""
SHOWN = 64
"""Points of a front that the job's result tells; the file has all of them."""


@dataclass
class SearchJob(Attempt):
    """One attempt. ``job`` searches; ``request`` is its caller's order, the recipe pinned as far as is known.
    ``context`` and ``work`` are of the job that runs here: the same, or one that helps it.
    """

    request: SearchRequest
    _enlisted: int = field(default=0, init=False)

    def run(self) -> dict[str, Any]:
        """Does the whole job; returns its result as the caller will see it."""
        planned = self._plan()
        way = self._way(planned)
        with self._bench(planned, way) as bench:
            found = self._search(planned, bench)
        self.context.enter("finalising")
        self._keep_front(found, planned)
        return self._keep({**found, "candidates": {"made": way.made, "why": way.why}})

    def help(self) -> dict[str, Any]:
        """Scores trials of the search as long as it is at work; says how many."""
        done = 0
        if self._goes_on():
            planned = self._plan()
            with self._bench(planned, self._way(planned)) as bench:
                journal = self._journal(planned)
                while self._goes_on():
                    if self._stoppable(lambda: journal.score_one(self.context, bench.told)):
                        done += 1
                    else:
                        time.sleep(POLL_SECONDS)
        return {"trials": done}

    def _goes_on(self) -> bool:
        """Whether the search asks for candidates just now: while it waits for a worker itself, who helps it
        must not stand in its way.
        """
        self.context.checkpoint()
        with self.workshop.transaction() as session:
            return is_searching(rows.moment(session, self.job.id))

    def _plan(self) -> Planned:
        planned = self.plan_again(self.request, Planned)
        return replace(planned, plan=relabelled(planned.plan, planned.inputs))

    @contextmanager
    def _bench(self, planned: Planned, way: Way) -> Iterator[Bench]:
        """The models on this machine, and what makes candidates of them and scores these."""
        sets = sets_of(self.request, self.job.plan or planned.summary)
        scorer = Scorer.prepare(self.workshop, self.job.tenant_id, self.context, sets, self.hub)
        scorer.require_harness()
        self.measurer.prepare(planned, self.hub)
        written = way.disk_bytes if way.why is not None else 0
        needed = planned.summary["estimate"]["download_bytes"] + written
        ensure_room(self.work, needed, free=self.workshop.free_bytes)
        folders = self._bring(planned)
        known = self.planner.digests(planned, self.job.tenant_id)
        statistics = self.measurer.measure(planned, folders, known)
        ground = self._ground(planned, folders, statistics)
        self.context.enter("searching")
        with ground.maker(planned.plan, scorer.tasks, written=way.why is not None) as maker:
            yield Bench(
                maker,
                Sets(scorer.tasks),
                planned.plan.models,
                statistics,
                self.request.search.objectives,
                ground.budget_bytes,
                KnownCandidates.of(
                    self.workshop, self.job.tenant_id, planned, folders, statistics, ground.heads
                ),
            )

    def _ground(
        self, planned: Planned, folders: Mapping[str, Path], statistics: Mapping[str, Path]
    ) -> Ground:
        settings, device = self.workshop.settings, self.workshop.device
        return Ground(
            folders,
            statistics,
            Heads(base_of(planned, folders), device),
            self.work.candidate,
            device,
            settings.memory_budget_bytes,
            devices.count_threads(settings.threads),
            self.context.should_stop,
            settings.hub_endpoint,
        )

    def _way(self, planned: Planned) -> Way:
        """How candidates are made here, which is told among the events. Raises ``MemoryShort`` where one
        could not even be loaded to be scored.
        """
        free = self.workshop.free_memory(self.workshop.device)
        way = way_of(planned.plan, self.request.evaluation_sets).within(free)
        if way.model_bytes > free:
            raise MemoryShort(
                f"scoring a candidate takes {way.model_bytes} bytes of memory, and this worker has {free} "
                "free; give the worker more memory, or search on smaller models first"
            )
        self.context.write(recording.record_candidates, way.as_dict())
        return way

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

    def _document(self, planned: Planned) -> dict[str, Any]:
        return as_sent(planned.recipe.model_dump(mode="json"), self.request)

    def _journal(self, planned: Planned) -> Rows:
        space, document = self.request.search.spaces, self._document(planned)
        return Rows(self.workshop.transaction, self.job.root_id, lambda point: space.place(document, point))

    def _search(self, planned: Planned, bench: Bench) -> dict[str, Any]:
        order, document = self.request.search, self._document(planned)
        journal = self._journal(planned)
        ended = self._stoppable(
            lambda: drive(
                order,
                document,
                lambda wanted: self._score(bench, journal, wanted),
                journal,
                clock=time.monotonic,
            )
        )
        journal.close()
        return result_of(order, document, ended)

    def _stoppable(self, work: Callable[[], T]) -> T:
        """Scoring that was told to stop becomes the reason for that."""
        try:
            return work()
        except ScoringStopped:
            self.context.checkpoint()
            raise

    def _score(self, bench: Bench, journal: Rows, wanted: list[Candidate]) -> list[Told]:
        """A whole batch, with the help of other workers; what they do not get to is done here."""
        journal.ask(wanted)
        self._call_for_help(len(wanted))
        while True:
            left, spent = journal.standing()
            whole = most(self.request.search)
            self.context.advance(min(round(spent), whole), whole, unit="rows")
            if not left:
                return journal.told(wanted)
            if not journal.score_one(self.context, bench.told):
                time.sleep(POLL_SECONDS)

    def _call_for_help(self, count: int) -> None:
        """More workers, as many as were ordered and can be of use for a batch of ``count``."""
        wanted = min(self.request.workers, count) - 1
        if wanted > self._enlisted:
            self._enlisted = self.context.write(enlist, wanted)

    def _keep_front(self, found: dict[str, Any], planned: Planned) -> None:
        """The front beside the job: the file below is on this machine, which nobody else may reach."""
        if (front := kept_front(found, self._document(planned))) is not None:
            self.context.write(recording.record_front, front)

    def _keep(self, found: dict[str, Any]) -> dict[str, Any]:
        """The whole result as a file, its gist as the job's result."""
        folder = artifact_folder(self.workshop.settings.data_dir, self.job.id)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        kind = "front" if found["front"] else "search"
        self.context.write(recording.record_artifact, kind, str(path), size=path.stat().st_size)
        gist = {key: value for key, value in found.items() if key not in ("trials", "predicted", "front")}
        return {**gist, "front": found["front"][:SHOWN], "folder": str(folder)}
