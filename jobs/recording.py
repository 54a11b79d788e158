"""What a worker finds out about its job, each with its event. Its fence goes with it; a stale one writes
nothing, and nothing here commits.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from db import artifacts, evaluations, fronts, jobs, reports
from jobs import events
from jobs.lifecycle import Fence, owned

SCORE_FACTS = ("stderr", "n", "higher_is_better", "known_key", "differences")


def record_inputs(session: Session, fence: Fence, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the pinned inputs; each row has the columns of ``job_input`` without the job's id."""
    job = owned(session, fence)
    jobs.put_inputs(session, job.id, rows)


def record_plan(session: Session, fence: Fence, summary: Mapping[str, Any], queue: str | None = None) -> None:
    """Stores the plan's summary (and the queue it asks for, should the job be queued again)."""
    job = owned(session, fence)
    job.plan = dict(summary)
    if queue is not None:
        job.queue = queue
    events.record(session, job, f"{job.kind}.planned", {"estimate": summary.get("estimate")})


def record_artifact(
    session: Session,
    fence: Fence,
    kind: str,
    uri: str,
    sha256: str | None = None,
    size: int | None = None,
    commit_sha: str | None = None,
) -> str:
    """Stores an output; the same (kind, uri) again replaces what was known. Gives its id."""
    job = owned(session, fence)
    artifact_id = artifacts.put(
        session, job.id, kind=kind, uri=uri, sha256=sha256, size=size, commit_sha=commit_sha
    )
    data = {"kind": kind, "uri": uri, "sha256": sha256, "size": size, "commit_sha": commit_sha}
    events.record(session, job, f"{job.kind}.artifact", data)
    return artifact_id


def record_evaluation(session: Session, fence: Fence, evaluation: Mapping[str, Any]) -> str:
    """Stores an evaluation: name, kind, passed, detail, task_sha256, scores = [{subject, metric, value,
    stderr, n, higher_is_better, known_key, differences}]; its id.

    ``subject`` is ``result`` (``result:`` and its name for a member of a bundle), ``base``, a source's or a
    model's id.
    """
    job = owned(session, fence)
    scores = [
        {"subject": each["subject"], "metric": each["metric"], "value": float(each["value"])}
        | {name: each.get(name) for name in SCORE_FACTS}
        for each in evaluation.get("scores", ())
    ]
    evaluation_id = evaluations.put(
        session,
        job.id,
        name=evaluation["name"],
        kind=evaluation["kind"],
        passed=evaluation.get("passed"),
        detail=evaluation.get("detail") or {},
        scores=scores,
        task_sha256=evaluation.get("task_sha256"),
    )
    scores = [{name: value for name, value in each.items() if name != "known_key"} for each in scores]
    data = {"evaluation_id": evaluation_id, "name": evaluation["name"], "kind": evaluation["kind"]}
    passed = evaluation.get("passed")
    events.record(session, job, "evaluation.completed", {**data, "passed": passed, "scores": scores})
    return evaluation_id


def record_report(session: Session, fence: Fence, survey: Mapping[str, Any]) -> None:
    """Stores what the merge did to the weights."""
    reports.put(session, owned(session, fence).id, survey)


def record_front(session: Session, fence: Fence, front: Mapping[str, Any]) -> None:
    """Stores the front that a search has found."""
    fronts.put(session, owned(session, fence).id, front)


def record_measured(session: Session, fence: Fence, facts: Mapping[str, Any]) -> None:
    """Adds to the job's events that the statistics of a model are there: measured, or found again."""
    job = owned(session, fence)
    events.record(session, job, f"{job.kind}.measured", facts)


def record_warning(session: Session, fence: Fence, code: str, detail: str) -> None:
    """Adds a remark to the job's events that does not stop it."""
    job = owned(session, fence)
    events.record(session, job, f"{job.kind}.warning", {"code": code, "detail": detail})


def record_candidates(session: Session, fence: Fence, facts: Mapping[str, Any]) -> None:
    """Adds to the events how this worker makes the candidates of a search, and why."""
    job = owned(session, fence)
    events.record(session, job, f"{job.kind}.candidates", facts)
