"""The story of a job that scores models as they are: plan, download what is not known yet, score, compare.

A later attempt finds the downloads, and every score that was measured before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.asking import PlannedModels
from jobs.kinds import sets_of
from jobs.pinned import PinnedInput
from jobs.places import prefix_of
from jobs.request import ScoreRequest
from worker.attempt import Attempt
from worker.errors import MemoryShort
from worker.inputs import fetch
from worker.scorer import Scorer, Scores, Subject
from worker.scratch import ensure_room


@dataclass
class ScoreJob(Attempt):
    """One attempt. ``request`` is the caller's order, its models pinned as far as is known."""

    request: ScoreRequest

    def run(self) -> dict[str, Any]:
        """Does the whole job; returns its result as the caller will see it."""
        planned = self.plan_again(self.request, PlannedModels)
        sets = sets_of(self.request, self.job.plan or planned.summary)
        scorer = Scorer.prepare(self.workshop, self.job.tenant_id, self.context, sets, self.hub)
        self._check_memory(planned)
        subjects = self._bring(planned, scorer)
        self.context.enter("evaluating")
        first = self.request.against or next(iter(subjects))
        scores = scorer.score(subjects, subjects[first])
        self.context.enter("finalising")
        scorer.record(scores, {name: [first] for name in scores if name != first and first in scores})
        return {"models": planned.subject["models"], "failed": scorer.fails, "scores": table(scores)}

    def _check_memory(self, planned: PlannedModels) -> None:
        needed = planned.summary["estimate"]["peak_memory_bytes"]
        free = self.workshop.free_memory(self.workshop.device)
        if needed > free:
            raise MemoryShort(
                f"scoring the largest model needs {needed} bytes of memory and this worker has {free} free; "
                "score smaller models, or give the worker more memory"
            )

    def _bring(self, planned: PlannedModels, scorer: Scorer) -> dict[str, Subject]:
        """The models; of those on the Hub the small files, and the weights where they have to be loaded."""
        self.context.enter("downloading")
        subjects = {}
        for each in planned.inputs:
            folder = each.folder
            if each.snapshot is not None:
                folder = self.work.inputs / each.role / prefix_of(each.inside)
                self._fetch(each, None)
            assert folder is not None  # an input is in a repository or in a folder
            subjects[each.role] = Subject(folder, each.listed_sums, planned.models[each.role].shards)
        lacking = scorer.lacking(subjects, self.request.against or planned.inputs[0].role)
        if lacking:
            scorer.require_harness()
        hub = [each for each in planned.inputs if each.role in lacking and each.snapshot is not None]
        ensure_room(self.work, sum(each.size_bytes for each in hub), free=self.workshop.free_bytes)
        for each in hub:
            self._fetch(each, planned.models[each.role].shards)
        return subjects

    def _fetch(self, each: PinnedInput, names: Sequence[str] | None) -> None:
        fetch(self.hub, each, names, self.work, self.context)


def table(scores: Scores) -> list[dict[str, Any]]:
    """One row a set and metric: what each model got."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, found in scores.items():
        for score in found:
            facts = {"set": score.task, "metric": score.metric, "higher_is_better": score.higher_is_better}
            row = rows.setdefault((score.task, score.metric), {**facts, "values": {}})
            row["values"][name] = score.value
    return list(rows.values())


def pinned_order(request: ScoreRequest, pinned: Mapping[str, str]) -> ScoreRequest:
    """The order with every model at the commit that an earlier look found."""
    models = [each.model_copy(update={"model": pinned.get(each.id, each.model)}) for each in request.models]
    return request.model_copy(update={"models": tuple(models)})
