"""Is the result sound, and how good is it beside its parents? Checked, scored, recorded, and one verdict."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db import scores as known_scores
from db.models.job import Job
from hub.snapshot import Hub
from jobs import lifecycle
from jobs.request import EvalSet, ModelOrder
from merge.learn.samples import default_set
from scoring import vitals as signs
from scoring.check import check_model
from scoring.check_report import CheckReport, Vitals
from scoring.digest import score_key
from scoring.paired import difference
from scoring.score import Score
from worker.context import JobContext
from worker.scorer import Scorer, Scores, Subject, twin_of
from worker.workshop import Workshop

RESULT, BASE = "result", "base"


@dataclass(frozen=True)
class Verdict:
    """``sound`` is ``None`` if nothing was checked; ``problem`` says why only ``always`` may publish it."""

    sound: bool | None
    problem: str | None = None
    card_scores: tuple[dict[str, Any], ...] = ()
    scores: tuple[Score, ...] = ()
    """Those of the result."""


@dataclass(frozen=True)
class Evaluator:
    """Checks and scores the result of one merge."""

    workshop: Workshop
    tenant_id: str
    context: JobContext
    scorer: Scorer
    order: ModelOrder

    @classmethod
    def prepare(
        cls,
        workshop: Workshop,
        context: JobContext,
        job: Job,
        order: ModelOrder,
        sets: Sequence[EvalSet],
        hub: Hub,
    ) -> "Evaluator":
        """Reads every evaluation set; raises what ``Scorer.prepare`` raises."""
        scorer = Scorer.prepare(workshop, job.tenant_id, context, sets, hub)
        return cls(workshop, job.tenant_id, context, scorer, order)

    def judge(self, result: Subject, parents: Mapping[str, Subject]) -> Verdict:
        """Checks the result, scores it (and its parents where asked for), and records all of it."""
        if not self._loads(result.folder):
            return unchecked()
        size = sum(path.stat().st_size for path in result.folder.glob("*.safetensors"))
        if (short := self.shortage(size)) is not None:
            self.context.write(lifecycle.record_warning, "not_checked", short)
            return Verdict(None, short)
        check = self._check(result, parents)
        self.context.write(
            lifecycle.record_evaluation,
            {"name": "check", "kind": "check", "passed": check.ok, "detail": check.as_dict()},
        )
        if not check.ok:
            return Verdict(False, check.sentence)
        if not self.scorer.tasks:
            return Verdict(True)
        beside = parents if self.order.evaluate.parents else {}
        scores = self.scorer.score({RESULT: result, **beside}, parents.get(BASE))
        self.scorer.record(scores, {RESULT: [name for name in scores if name != RESULT]})
        margin = self.order.evaluate.margin
        return Verdict(True, _too_bad(scores, margin), tuple(card_rows(scores)), tuple(scores[RESULT]))

    def _check(self, result: Subject, parents: Mapping[str, Subject]) -> CheckReport:
        """Does it load, read, answer and write, and does it know about as much as its parents?"""
        texts, device = signs.sample(default_set()[0]), self.workshop.device
        check = check_model(result.folder, device=device, texts=texts, should_stop=self.context.should_stop)
        if not check.ok or check.vitals is None:
            return check
        beside = {}
        for name, parent in parents.items():
            size = sum(path.stat().st_size for path in parent.folder.glob("*.safetensors"))
            if size > self.workshop.free_memory(device):
                continue
            found = self._vitals(parent, texts, writes=signs.repeats(check.vitals))
            if found is not None:
                beside[name] = found
            self.context.checkpoint()
        return check.beside(beside, signs.compare(check.vitals, beside, self.order.evaluate.loss_margin))

    def _vitals(self, parent: Subject, texts: tuple[str, ...], *, writes: bool) -> Vitals | None:
        """A parent's vitals; None where it has none. They are kept for other merges of it where its digest
        takes no reading of weights.
        """
        if not parent.is_known:
            return self._take(parent, texts, writes=writes)
        task = signs.digest(texts, writes=writes)
        key = score_key(parent.digest, task, self.workshop.device)
        with self.workshop.transaction() as session:
            known = known_scores.of_keys(session, self.tenant_id, [key]).get(key)
        if known is not None:
            return Vitals.from_dict(known[0]) if known else None
        found = self._take(parent, texts, writes=writes)
        told = [] if found is None else [found.as_dict()]
        with self.workshop.transaction() as session:
            known_scores.put(session, self.tenant_id, key, told, model=parent.digest, task=task)
        return found

    def _take(self, parent: Subject, texts: tuple[str, ...], *, writes: bool) -> Vitals | None:
        report = check_model(
            parent.folder,
            device=self.workshop.device,
            texts=texts,
            should_stop=self.context.should_stop,
            only_vitals=True,
            writes=writes,
        )
        return report.vitals

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
        needed = size * (4 // 2 if self.scorer.tasks else 1)
        free = self.workshop.free_memory(self.workshop.device)
        if needed <= free:
            return None
        return f"its check needs {needed} bytes of memory and this worker has {free} free"


def unchecked() -> Verdict:
    """The verdict about a result that could not be checked."""
    return Verdict(None)


def card_rows(scores: Scores) -> list[dict[str, Any]]:
    """One row a set and metric: the result's score beside its parents', with what surely differs."""
    rows = []
    for score in scores[RESULT]:
        twins = {name: twin_of(score, found) for name, found in scores.items() if name != RESULT}
        parents = {name: twin for name, twin in twins.items() if twin is not None}
        rows.append(
            {
                "set": score.task,
                "metric": score.metric,
                "result": score.value,
                "stderr": score.stderr,
                "n": score.n,
                "parents": {name: twin.value for name, twin in parents.items()},
                "clear": [name for name, twin in parents.items() if _differs(score, twin)],
                "higher_is_better": score.higher_is_better,
            }
        )
    return rows


def _differs(score: Score, twin: Score) -> bool:
    found = difference(score, twin)
    return found is not None and found.is_clear


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
