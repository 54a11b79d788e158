"""Is the result sound, and how good is it beside its parents? Checked, scored, recorded, and one verdict."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from db import scores as known_scores
from db.models.job import Job
from hub.snapshot import Hub
from jobs import recording
from jobs.request import ModelOrder
from jobs.sets import CHECK, EvalSet
from merge.learn.samples import default_set
from scoring import vitals as signs
from scoring.check import check_model
from scoring.check_report import CheckReport, Vitals, not_compared
from scoring.digest import score_key
from scoring.paired import difference
from scoring.score import Score
from worker.context import JobContext
from worker.given_back import Member
from worker.measures import Model
from worker.scorer import Looked, Scorer, Scores, twin_of
from worker.subjects import RESULT, Outcome
from worker.workshop import Workshop

NO_PARENT = "none is here whole, fits into memory and predicts tokens of texts"


@dataclass(frozen=True)
class Verdict:
    """``sound`` is ``None`` if nothing was checked; ``problem`` says why only ``always`` may publish it."""

    sound: bool | None
    problem: str | None = None
    card_scores: tuple[dict[str, Any], ...] = ()
    scores: Mapping[Member, Sequence[Score]] = field(default_factory=dict)
    """Those of the result, or of each member of it."""


@dataclass(frozen=True)
class Evaluator:
    """Checks and scores the result of one merge."""

    workshop: Workshop
    tenant_id: str
    context: JobContext
    scorer: Scorer
    order: ModelOrder
    _taken: dict[tuple[str, bool], Vitals | None] = field(default_factory=dict)

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
        """Reads every evaluation set; raises what ``Scorer.prepare`` and ``require_harness`` raise."""
        scorer = Scorer.prepare(workshop, job.tenant_id, context, sets, hub)
        scorer.require_harness()
        return cls(workshop, job.tenant_id, context, scorer, order)

    def judge(self, outcomes: Sequence[Outcome], reference: Model | None = None) -> Verdict:
        """Checks the result, or every member of it, scores it (and its parents where asked for), and records
        all of it. ``reference`` makes the zero-shot heads of all, where a set asks for that.
        """
        if (short := self.shortage(max(each.model.size for each in outcomes))) is not None:
            return replace(self.unchecked(short), problem=short)
        problems = [problem for each in outcomes if (problem := self._problem(each)) is not None]
        if problems:
            return Verdict(False, problems[0])
        if not self.scorer.tasks:
            return Verdict(True)
        subjects: dict[str, Model] = {each.name: each.model for each in outcomes}
        if self.order.evaluate.parents:
            subjects |= {role: parent for each in outcomes for role, parent in each.parents.items()}
        scores = self.scorer.score(subjects, reference, [each.name for each in outcomes])
        against = {each.name: [role for role in each.parents if role in scores] for each in outcomes}
        self.scorer.record(scores, against)
        rows = tuple(row for each in outcomes for row in card_rows(scores, each))
        own = {each.member: scores[each.name] for each in outcomes}
        return Verdict(True, _too_bad(rows, self.order.evaluate.margin), rows, own)

    def unchecked(self, why: str) -> Verdict:
        """The verdict about a result that was not checked; why is told."""
        self.context.write(recording.record_warning, "not_checked", why)
        return Verdict(None)

    def _problem(self, outcome: Outcome) -> str | None:
        """Checks a result, or a member, and records that; says what is wrong with it."""
        check = self._check(outcome.model, outcome.parents)
        name = outcome.name.replace(RESULT, CHECK, 1)
        facts = {"name": name, "kind": CHECK, "passed": check.ok, "detail": check.as_dict()}
        self.context.write(recording.record_evaluation, facts)
        if check.ok:
            return None
        return check.sentence if outcome.member is None else f"member {outcome.member}: {check.sentence}"

    def _check(self, result: Looked, parents: Mapping[str, Looked]) -> CheckReport:
        """Does it load, read, answer and write, and does it know about as much as its parents?"""
        texts, device = signs.sample(default_set()[0]), self.workshop.device
        check = check_model(result.folder, device=device, texts=texts, should_stop=self.context.should_stop)
        if not check.ok:
            return check
        if check.vitals is None:
            return check.beside({}, [not_compared()])
        beside = {}
        for name, parent in parents.items():
            if parent.size > self.workshop.free_memory(device):
                continue
            key = (name, signs.repeats(check.vitals))
            if key not in self._taken:
                self._taken[key] = self._vitals(parent, texts, writes=key[1])
            if (taken := self._taken[key]) is not None:
                beside[name] = taken
            self.context.checkpoint()
        found = signs.compare(check.vitals, beside, self.order.evaluate.loss_margin)
        return check.beside(beside, found if beside else [not_compared(NO_PARENT)])

    def _vitals(self, parent: Looked, texts: tuple[str, ...], *, writes: bool) -> Vitals | None:
        """A parent's vitals; None where it has none. They are kept for other merges of it where its digest
        takes no reading of weights.
        """
        if not parent.is_known:
            return self._take(parent, texts, writes=writes)
        task = signs.digest(texts, writes=writes)
        key = score_key(parent.digest, task, self.workshop.device)
        with self.workshop.transaction() as session:
            known = known_scores.recall(session, self.tenant_id, [key]).get(key)
        if known is not None:
            return Vitals.from_dict(known[0]) if known else None
        found = self._take(parent, texts, writes=writes)
        told = [] if found is None else [found.as_dict()]
        with self.workshop.transaction() as session:
            known_scores.put(session, self.tenant_id, key, told, model=parent.digest, task=task)
        return found

    def _take(self, parent: Looked, texts: tuple[str, ...], *, writes: bool) -> Vitals | None:
        report = check_model(
            parent.folder,
            device=self.workshop.device,
            texts=texts,
            should_stop=self.context.should_stop,
            only_vitals=True,
            writes=writes,
        )
        return report.vitals

    def shortage(self, size: int) -> str | None:
        """What to say when the memory cannot hold a result of ``size`` bytes for its check.

        Checking needs the whole model, scoring needs it as float32; merging needs neither.
        """
        needed = size * (4 // 2 if self.scorer.tasks else 1)
        free = self.workshop.free_memory(self.workshop.device)
        if needed <= free:
            return None
        return f"its check needs {needed} bytes of memory and this worker has {free} free"


def card_rows(scores: Scores, outcome: Outcome) -> list[dict[str, Any]]:
    """One row a set and metric: the score of the result, or of a member, beside its parents', with what
    surely differs.
    """
    rows = []
    for score in scores[outcome.name]:
        found = {label: scores.get(role, ()) for role, label in outcome.labels.items()}
        twins = {label: twin_of(score, each) for label, each in found.items()}
        parents = {label: twin for label, twin in twins.items() if twin is not None}
        compared = {label: difference(score, twin) for label, twin in parents.items()}
        differences = {label: each.as_dict() for label, each in compared.items() if each is not None}
        rows.append(
            {
                "set": score.task,
                "metric": score.metric,
                **({} if outcome.member is None else {"member": outcome.member}),
                "result": score.value,
                "stderr": score.stderr,
                "n": score.n,
                "parents": {name: twin.value for name, twin in parents.items()},
                "clear": [name for name, found in differences.items() if found["clear"]],
                "differences": differences,
                "higher_is_better": score.higher_is_better,
            }
        )
    return rows


def _too_bad(rows: Iterable[Mapping[str, Any]], margin: float | None) -> str | None:
    """Names the first score that is worse than the best parent's by more than ``margin`` of it."""
    if margin is None:
        return None
    for row in rows:
        if not row["parents"]:
            continue
        better = max if row["higher_is_better"] else min
        best = better(row["parents"].values())
        loss = (best - row["result"]) if row["higher_is_better"] else (row["result"] - best)
        if loss > margin * abs(best):
            of = f" of member {row['member']}" if "member" in row else ""
            return (
                f"{row['metric']} on {row['set']}{of} is {row['result']:.4g}, more than {margin:.0%} worse "
                f"than the best parent's {best:.4g}"
            )
    return None
