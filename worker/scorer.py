"""Scores models on the sets of one job: what was measured before is found again, the rest is measured and
kept, and all of it is recorded beside what it is compared with.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from db import scores as known_scores
from hub.snapshot import Hub
from jobs import recording
from jobs.sets import EvalSet
from scoring.digest import model_digest, score_key, task_digest
from scoring.errors import ScoringError, ScoringStopped
from scoring.harness.run import require_tasks
from scoring.lines import Limits
from scoring.paired import difference
from scoring.runner import ScoreProgress
from scoring.score import Score
from scoring.tasks import Task, ZeroShotTask, parse_task
from worker.context import JobContext
from worker.datasets import read_file
from worker.log import redacted
from worker.measures import Heads, Model, measure
from worker.workshop import Workshop

Scores = Mapping[str, Sequence[Score]]


class Looked(Model, Protocol):
    """A model that can be loaded, of ``size`` bytes."""

    @property
    def size(self) -> int: ...
    @property
    def is_known(self) -> bool:
        """Whether its digest takes no reading of weights."""


@dataclass(frozen=True)
class Subject:
    """A model folder to be scored; ``sha256s`` are those of its files (hex, by name) that are known."""

    folder: Path
    sha256s: Mapping[str, str]
    weights: Sequence[str] = ()
    """Files that count although they may not be there yet; their sha256 is known then."""

    @property
    def size(self) -> int:
        """Bytes of its weight files."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    @property
    def is_known(self) -> bool:
        """Whether its digest takes no reading of weights."""
        return all(path.name in self.sha256s for path in self.folder.glob("*.safetensors"))

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything in it that a score depends on."""
        return model_digest(self.folder, self.sha256s, self.weights)


@dataclass
class Scorer:
    """Holds the evaluation sets of one job, read and checked before anything expensive. ``fails`` are the
    subjects that could not be scored, with the reason.
    """

    workshop: Workshop
    tenant_id: str
    context: JobContext
    sets: Sequence[EvalSet]
    tasks: Sequence[Task]
    fails: dict[str, str] = field(default_factory=dict)
    _keys: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls, workshop: Workshop, tenant_id: str, context: JobContext, sets: Sequence[EvalSet], hub: Hub
    ) -> "Scorer":
        """Reads every set. Raises ``SetInvalid``, ``SetTooLarge``, ``NotFound`` or what the Hub said."""
        most = workshop.settings.max_dataset_bytes
        limits = Limits(file_bytes=most)
        tasks = []
        for place, each in enumerate(sets):
            file, body = each.name, b""
            if each.data is not None:
                pointer = f"/evaluate/sets/{place}/data"
                file, body = read_file(workshop, tenant_id, each.data, hub, most, pointer)
            tasks.append(
                parse_task(
                    each.name,
                    each.kind,
                    body,
                    file=file,
                    limit=each.limit,
                    limits=limits,
                    settings=each.asked,
                )
            )
        return cls(workshop, tenant_id, context, tuple(sets), tuple(tasks))

    def require_harness(self) -> None:
        """Raises ``HarnessMissing`` or ``HarnessFailed`` where a set is for a harness, or a task of it, that
        is not there: told before models are fetched.
        """
        try:
            require_tasks(self.tasks, should_stop=self.context.should_stop)
        except ScoringStopped:
            self.context.checkpoint()
            raise

    def score(
        self, subjects: Mapping[str, Model], reference: Model | None = None, needed: Collection[str] = ()
    ) -> Scores:
        """The scores of every subject on every set. A subject that cannot be scored is told and left out; if
        it is the first, ``needed``, or the last one left, its error is raised. ``reference`` makes the
        zero-shot heads of all, where a set asks for that.
        """
        found: dict[str, Sequence[Score]] = {}
        heads = Heads(reference, self.workshop.device)
        for place, (name, subject) in enumerate(subjects.items()):
            try:
                found[name] = self._one(name, subject, heads, place, len(subjects))
            except ScoringStopped:
                self.context.checkpoint()
                raise
            except ScoringError as error:
                if place == 0 or name in needed or (place == len(subjects) - 1 and not found):
                    raise
                self.leave_out(name, str(error))
            self.context.checkpoint()
        return found

    def leave_out(self, name: str, why: str) -> None:
        """Tells that a subject is not scored; ``why`` may hold what another program has said."""
        why = redacted(why)
        self.fails[name] = why
        self.context.write(recording.record_warning, "not_scored", f"{name}: {why}")

    def lacking(self, subjects: Mapping[str, Subject], reference: str) -> set[str]:
        """The subjects that have to be loaded, for a score of theirs or for the heads that they make."""
        heads = Heads(subjects[reference], self.workshop.device)
        found = {name for name, subject in subjects.items() if self._unknown(name, subject, heads)[1]}
        asked = any(isinstance(each, ZeroShotTask) and each.settings.head == "base" for each in self.tasks)
        return found | {reference} if found and asked else found

    def record(self, scores: Scores, against: Mapping[str, Sequence[str]]) -> None:
        """Records every set with the scores on it; ``against`` names, for a subject, whom it is compared
        with.
        """
        for wanted, task in zip(self.sets, self.tasks, strict=True):
            rows = [
                self._row(name, score, scores, against.get(name, ()))
                for name, found in scores.items()
                for score in found
                if score.task == task.name
            ]
            detail = {
                "data": wanted.data.model_dump(mode="json", exclude_none=True) if wanted.data else None,
                "limit": wanted.limit,
                "settings": task.settings.model_dump(mode="json"),
                **({"not_scored": dict(self.fails)} if self.fails else {}),
            }
            facts = {"name": task.name, "kind": task.kind, "task_sha256": self._digests[task.name]}
            self.context.write(recording.record_evaluation, {**facts, "detail": detail, "scores": rows})

    def _row(self, name: str, score: Score, scores: Scores, others: Sequence[str]) -> dict[str, Any]:
        differences = {}
        for other in others:
            twin = twin_of(score, scores.get(other, ()))
            found = None if twin is None else difference(score, twin)
            if found is not None:
                differences[other] = found.as_dict()
        return {
            "subject": name,
            "metric": score.metric,
            "value": score.value,
            "stderr": score.stderr,
            "n": score.n,
            "higher_is_better": score.higher_is_better,
            "known_key": self._keys.get((name, score.task)),
            "differences": differences or None,
        }

    def _one(self, name: str, subject: Model, heads: Heads, place: int, count: int) -> list[Score]:
        """The scores of one subject; what was measured before is taken from there, the rest is kept."""
        known, wanted = self._unknown(name, subject, heads)
        keys = {task.name: self._keys[name, task.name] for task in self.tasks}

        def on_progress(progress: ScoreProgress) -> None:
            done = place * progress.total + progress.done
            self.context.advance(done, count * progress.total, unit="rows")

        if wanted:
            found = measure(
                subject.folder,
                wanted,
                heads,
                device=self.workshop.device,
                hub_endpoint=self.workshop.settings.hub_endpoint,
                on_progress=on_progress,
                should_stop=self.context.should_stop,
            )
            for task in wanted:
                own = [score for score in found if score.task == task.name]
                known[keys[task.name]] = own
                self._remember(keys[task.name], own, subject.digest, self._digests[task.name])
        return [replace(score, task=task) for task, key in keys.items() for score in known[key]]

    def _unknown(self, name: str, subject: Model, heads: Heads) -> tuple[dict[str, list[Score]], list[Task]]:
        """The known scores of a subject by key, and the tasks that it is still to be measured on."""
        keys = {}
        for task in self.tasks:
            head = heads.digest if isinstance(task, ZeroShotTask) and task.settings.head == "base" else None
            digest = self._digests[task.name]
            keys[task.name] = score_key(subject.digest, digest, self.workshop.device, head)
            self._keys[name, task.name] = keys[task.name]
        known = self._recall(list(keys.values()))
        return known, [task for task in self.tasks if keys[task.name] not in known]

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {task.name: task_digest(task) for task in self.tasks}

    def _recall(self, keys: Sequence[str]) -> dict[str, list[Score]]:
        with self.workshop.transaction() as session:
            found = known_scores.recall(session, self.tenant_id, keys)
        return {key: [Score.from_dict(score) for score in scores] for key, scores in found.items()}

    def _remember(self, key: str, scores: Sequence[Score], model: str, task: str) -> None:
        with self.workshop.transaction() as session:
            told = [score.as_dict() for score in scores]
            known_scores.put(session, self.tenant_id, key, told, model=model, task=task)


def twin_of(score: Score, others: Sequence[Score]) -> Score | None:
    """Another model's score on the same set by the same metric."""
    same = (each for each in others if (each.task, each.metric) == (score.task, score.metric))
    return next(same, None)
