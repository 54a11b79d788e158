"""Is the result sound, and how good is it beside its parents? Checked, scored, recorded, and one verdict."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from db import scores as known_scores
from db.models.job import Job
from hub.snapshot import Hub
from jobs import lifecycle
from jobs.request import EvaluateRequest
from scoring.check import check_model
from scoring.digest import model_digest, score_key
from scoring.runner import ScoreProgress, score_model
from scoring.score import Score
from scoring.tasks import Limits, Task, parse_task
from worker.context import JobContext
from worker.datasets import read_file
from worker.workshop import Workshop

RESULT = "result"
Scores = Mapping[str, Sequence[Score]]


@dataclass(frozen=True)
class Verdict:
    """``sound`` is ``None`` if nothing was checked; ``problem`` says why only ``always`` may publish it."""

    sound: bool | None
    problem: str | None = None
    card_scores: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model folder to be scored; ``sha256s`` are those of its files (hex, by name) that are known."""

    folder: Path
    sha256s: Mapping[str, str]


@dataclass(frozen=True)
class Evaluator:
    """Holds the evaluation sets of one job, read and checked before anything expensive."""

    workshop: Workshop
    tenant_id: str
    context: JobContext
    tasks: tuple[Task, ...]
    order: EvaluateRequest

    @classmethod
    def prepare(
        cls, workshop: Workshop, context: JobContext, job: Job, order: EvaluateRequest, hub: Hub
    ) -> "Evaluator":
        """Reads every set. Raises ``SetInvalid``, ``SetTooLarge``, ``NotFound`` or what the Hub said."""
        limits = Limits(file_bytes=workshop.settings.max_dataset_bytes)
        tasks = []
        for each in order.sets:
            limit = workshop.settings.max_dataset_bytes
            file, body = read_file(workshop, job.tenant_id, each.data, hub, limit, "/evaluate/sets")
            tasks.append(parse_task(each.name, each.kind, body, file=file, limit=each.limit, limits=limits))
        return cls(workshop, job.tenant_id, context, tuple(tasks), order)

    def judge(self, result: Subject, parents: Mapping[str, Subject]) -> Verdict:
        """Checks the result, scores it (and its parents where asked for), and records all of it."""
        if not self._loads(result.folder):
            return unchecked()
        size = sum(path.stat().st_size for path in result.folder.glob("*.safetensors"))
        if (short := self.shortage(size)) is not None:
            self.context.write(lifecycle.record_warning, "not_checked", short)
            return Verdict(None, short)
        device = self.workshop.device
        check = check_model(result.folder, device=device, should_stop=self.context.should_stop)
        self.context.write(
            lifecycle.record_evaluation,
            {"name": "check", "kind": "check", "passed": check.ok, "detail": check.as_dict()},
        )
        if not check.ok:
            return Verdict(False, check.sentence)
        if not self.tasks:
            return Verdict(True)
        scores = self._score({RESULT: result, **(parents if self.order.parents else {})})
        self._record(scores)
        return Verdict(True, _too_bad(scores, self.order.margin), tuple(card_rows(scores)))

    def _loads(self, result: Path) -> bool:
        """Only a whole model with a config can be checked: no adapter, and no bare state dict."""
        config = result / "config.json"
        if config.is_file() and "_class_name" not in json.loads(config.read_bytes()):
            return True
        detail = "the result is not a Transformers model by itself, so it was not loaded and not scored"
        self.context.write(lifecycle.record_warning, "not_checked", detail)
        return False

    def shortage(self, size: int) -> str | None:
        """What to say when the memory cannot hold a result of ``size`` bytes for its check.

        Checking needs the whole model, scoring needs it as float32; merging needs neither.
        """
        needed = size * (4 // 2 if self.tasks else 1)
        free = self.workshop.free_memory(self.workshop.device)
        if needed <= free:
            return None
        return f"its check needs {needed} bytes of memory and this worker has {free} free"

    def _score(self, subjects: Mapping[str, Subject]) -> Scores:
        """The scores of every subject; what was measured before is taken from there, the rest is kept."""
        keys = {name: self._keys(subject) for name, subject in subjects.items()}
        known = self._recall([key for each in keys.values() for key in each.values()])
        unknown = {name: own for name, own in keys.items() if not known.keys() >= set(own.values())}
        for place, (name, own) in enumerate(unknown.items()):

            def on_progress(progress: ScoreProgress, place: int = place) -> None:
                done = place * progress.total + progress.done
                self.context.advance(done, len(unknown) * progress.total, unit="rows")

            found = score_model(
                subjects[name].folder,
                [task for task in self.tasks if own[task.name] not in known],
                device=self.workshop.device,
                per_example=True,
                on_progress=on_progress,
                should_stop=self.context.should_stop,
            )
            known |= self._remember(own, found)
            self.context.checkpoint()
        return {
            name: [replace(score, task=task) for task, key in own.items() for score in known[key]]
            for name, own in keys.items()
        }

    def _keys(self, subject: Subject) -> dict[str, str]:
        """What the scores of a subject are known by, for each set."""
        digest = model_digest(subject.folder, subject.sha256s)
        return {task.name: score_key(digest, task, self.workshop.device) for task in self.tasks}

    def _recall(self, keys: Sequence[str]) -> dict[str, list[Score]]:
        with self.workshop.transaction() as session:
            found = known_scores.of_keys(session, self.tenant_id, keys)
        return {key: [Score.from_dict(score) for score in scores] for key, scores in found.items()}

    def _remember(self, keys: Mapping[str, str], scores: Sequence[Score]) -> dict[str, list[Score]]:
        measured = {score.task for score in scores}
        by_key = {
            key: [score for score in scores if score.task == task]
            for task, key in keys.items()
            if task in measured
        }
        with self.workshop.transaction() as session:
            for key, found in by_key.items():
                known_scores.put(session, self.tenant_id, key, [score.as_dict() for score in found])
        return by_key

    def _record(self, scores: Scores) -> None:
        for task in self.tasks:
            rows = [
                {
                    "subject": subject,
                    "metric": score.metric,
                    "value": score.value,
                    "stderr": score.stderr,
                    "n": score.n,
                }
                for subject, found in scores.items()
                for score in found
                if score.task == task.name
            ]
            self.context.write(
                lifecycle.record_evaluation, {"name": task.name, "kind": task.kind, "scores": rows}
            )


def unchecked() -> Verdict:
    """The verdict about a result that could not be checked."""
    return Verdict(None)


def card_rows(scores: Scores) -> list[dict[str, Any]]:
    """One row a set and metric: the result's score beside its parents'."""
    rows = []
    for score in scores[RESULT]:
        parents = {
            subject: other.value
            for subject, found in scores.items()
            for other in found
            if subject != RESULT and (other.task, other.metric) == (score.task, score.metric)
        }
        rows.append(
            {
                "set": score.task,
                "metric": score.metric,
                "result": score.value,
                "parents": parents,
                "higher_is_better": score.higher_is_better,
            }
        )
    return rows


def _too_bad(scores: Scores, margin: float | None) -> str | None:
    """Names the first score that is worse than the best parent's by more than ``margin`` of it."""
    if margin is None:
        return None
    for row in card_rows(scores):
        if not row["parents"]:
            continue
        better = max if row["higher_is_better"] else min
        best = better(row["parents"].values())
        loss = (best - row["result"]) if row["higher_is_better"] else (row["result"] - best)
        if loss > margin * abs(best):
            return (
                f"{row['metric']} on {row['set']} is {row['result']:.4g}, more than {margin:.0%} worse than "
                f"the best parent's {best:.4g}"
            )
    return None
