"""Rows of a job as the words and tables of its page. Pure."""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from api.dashboard.render import bytes_said, number_said, seconds_said, short_name
from db.models.evaluation import Evaluation, EvaluationScore
from db.models.job import Job, JobEvent
from jobs.append import can_append
from jobs.errors import OrderOutdated
from jobs.request import as_stored, stored_order
from jobs.sets import CHECK
from jobs.states import ACTIVE, PHASES, RETRYABLE, State, is_terminal
from merge.recipe.recipe import Recipe
from scoring.score import higher_is_better

POINTS_MOST = 600
UNATTENDED_SECONDS = 60
SOMETIMES = ("measuring", "merging", "searching", "evaluating", "uploading")
ESTIMATES = {
    "download_bytes": ("Download", bytes_said),
    "disk_bytes": ("Disk", bytes_said),
    "peak_memory_bytes": ("Peak memory", bytes_said),
    "output_bytes": ("Result", bytes_said),
    "seconds": ("Time", lambda seconds: "about " + seconds_said(seconds)),
}


def job_row(job: Job) -> dict[str, Any]:
    """What lists and the head of the page say of a job."""
    output = job.spec.get("output") or {}
    progress = job.progress or {}
    steps = job.recipe.get("steps", ()) if job.kind in ("merge", "search") else ()
    methods = " + ".join(step.get("method", "") for step in steps) or job.method or job.kind
    if job.kind == "search":
        methods = f"search by {job.spec['search']['method']}: {methods}"
    repo = output.get("repo")
    named = job.recipe.get("sources") or job.recipe.get("models") or ()
    base, bundle = job.recipe.get("base"), job.recipe.get("bundle")
    sources = [_source_said(each, base) for each in named or ([{"model": bundle}] if bundle else [])]
    said = sources if len(sources) <= 3 else [*sources[:2], f"{len(sources) - 2} more"]
    fraction = progress.get("fraction")
    doing = [job.phase or job.state, f"{100 * fraction:.0f} %" if fraction else ""]
    if eta := progress.get("eta_seconds"):
        doing.append(f"{seconds_said(eta)} left")
    return {
        "id": job.id,
        "title": f"{methods} → {repo}" if repo else methods,
        "summary": ", ".join(said),
        "state": str(job.state),
        "moving": job.state in ACTIVE,
        "ended": is_terminal(job.state),
        "fraction": fraction,
        "doing": " · ".join(filter(None, doing)),
        "error_code": job.error_code,
        "created_at": job.created_at,
        "took": took(job.started_at, job.finished_at),
    }


def _source_said(source: Mapping[str, Any], base: str | None) -> str:
    """A source in a list: its model, its adapter over the base, or both."""
    model, adapter = source.get("model"), source.get("adapter")
    told = [adapter] if adapter and model in (None, base) else [model, adapter]
    return " + ".join(short_name(str(each)) for each in told if each)


def job_view(job: Job) -> dict[str, Any]:
    """Everything of the job's own row that its page shows."""
    error = None
    if job.error_code:
        error = {
            "code": job.error_code,
            "detail": job.error_detail,
            "findings": told_findings(job.error_findings or ()),
        }
    return job_row(job) | {
        "recipe_sha256": job.recipe_sha256,
        "can_cancel": job.state in (State.QUEUED, State.RUNNING),
        "can_retry": job.state in RETRYABLE,
        "can_append": can_append(job),
        "has_recipe": "recipe" in job.spec,
        "error": error,
        "facts": _facts(job),
        "outcome": _outcome(job.result or {}),
    }


def told_findings(findings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Findings with every field the page asks for."""
    names = ("severity", "code", "message", "pointer", "model", "tensor", "input")
    return [{name: each.get(name) for name in names} for each in findings]


def took(start: datetime | None, end: datetime | None) -> str:
    """How long something took, if it began and ended."""
    return seconds_said((end - start).total_seconds()) if start and end else ""


def estimate_of(plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The plan's estimates as words; of a search, which has many merges and no result, the time of one."""
    estimate = dict((plan or {}).get("estimate") or {})
    if not estimate.get("output_bytes"):
        estimate.pop("output_bytes", None)
    one = "One merge" if (plan or {}).get("search") else "Time"
    return [
        (one if key == "seconds" else name, say(estimate[key]))
        for key, (name, say) in ESTIMATES.items()
        if estimate.get(key) is not None
    ]


def measuring_of(plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What the plan says of statistics on data; nothing where no step needs any."""
    said = (plan or {}).get("statistics")
    if not said:
        return []
    if not said["missing"]:
        return [("Measuring", "nothing: it was measured before")]
    time, memory = seconds_said(said["seconds"]), bytes_said(said["memory_bytes"])
    what = f"{', '.join(said['missing'])}: about {time}, {memory} of memory"
    return [("Measuring", what + (f" ({', '.join(said['found'])} found again)" if said.get("found") else ""))]


def measured_of(events: Iterable[JobEvent]) -> list[dict[str, Any]]:
    """The statistics of each model as the last attempt had them."""
    ends = (each.data for each in events if each.type.endswith(".measured"))
    latest = {(told["model"], *told["kinds"]): told for told in ends}
    return [
        {
            "model": model,
            "digest": told["digest"],
            "kinds": ", ".join(kind.replace("_", " ") for kind in told["kinds"]),
            "said": "found again, nothing measured"
            if told["found"]
            else f"{told['tokens']:,} tokens in {seconds_said(told['seconds'])}",
        }
        for (model, *_), told in latest.items()
    ]


def stage_said(name: str, stage: Mapping[str, Any]) -> str:
    """A stage of a plan in words."""
    steps = " → ".join(step["method"] for step in stage["steps"])
    return f"{name} ({steps}, {'written first' if stage['written'] else 'made as it is read'})"


def unattended_said(job: Job, waited: float | None) -> str | None:
    """What is said of a job that nobody takes."""
    if waited is None or waited < UNATTENDED_SECONDS:
        return None
    return (
        f"It has waited for {seconds_said(waited)} and no worker is at work on the queue {job.queue}. "
        f"Does one run? `mergery worker --queues {job.queue}` is one."
    )


def phases_of(job: Job, events: Sequence[JobEvent]) -> list[dict[str, str]]:
    """Every phase of the last attempt: what it is, whether it is done, and how long it took."""
    began: dict[str, datetime] = {}
    for event in events:
        if event.type.endswith(".started"):
            began = {PHASES[0]: event.at}
        elif event.type.endswith(".phase"):
            began[event.data["phase"]] = event.at
    moving = job.state in ACTIVE
    times = [*began.values(), *([job.finished_at] if job.finished_at else [])]
    ends = dict(zip(began, times[1:], strict=False))
    last = next(reversed(began), None)
    shown = [name for name in PHASES if name in began or (name not in SOMETIMES or _expected(job, name))]
    rows = []
    for name in shown:
        if name not in began:
            mark, said = (
                "",
                "skipped"
                if job.state == State.SUCCEEDED or (last in PHASES and name in PHASES[: PHASES.index(last)])
                else "to come"
                if not is_terminal(job.state)
                else "–",
            )
        elif name == last and moving:
            mark, said = "now", "now"
        elif name == last and job.state != State.SUCCEEDED:
            mark, said = "broken", {"queued": "given back"}.get(job.state, str(job.state))
        else:
            mark, said = "done", took(began[name], ends.get(name)) or "done"
        rows.append({"name": name, "mark": mark, "said": said})
    return rows


def log_of(events: Iterable[JobEvent]) -> list[dict[str, Any]]:
    """The event log, newest first, without the progress that the chart shows."""
    rows = [
        {"seq": each.seq, "at": each.at, "type": each.type, "said": event_said(_told(each))}
        for each in events
        if not each.type.endswith(".progress")
    ]
    return rows[::-1]


def _told(event: JobEvent) -> dict[str, Any]:
    return {"search": event.type.startswith("search."), **event.data}


def event_said(data: Mapping[str, Any]) -> str:
    """One line on what an event holds."""
    parts = [
        data[key]
        for key in ("phase", "kind", "name", "uri", "code", "detail", "repo", "made", "why")
        if isinstance(data.get(key), str)
    ]
    if data.get("attempt"):
        parts.append(f"attempt {data['attempt']}")
    if data.get("size"):
        parts.append(bytes_said(data["size"]))
    parts += [f"{name}: {value}" for name, value in estimate_of(data)]
    return " · ".join(parts)


def point_of(event: JobEvent) -> dict[str, Any]:
    """A point of the throughput charts: when, in which phase, how many bytes or tokens so far."""
    data = event.data
    return {
        "seq": event.seq,
        "at": event.at.timestamp(),
        "phase": data.get("phase"),
        "bytes": data.get("bytes_done"),
        "tokens": data.get("tokens_done"),
    }


def points_of(events: Iterable[JobEvent]) -> list[dict[str, Any]]:
    """Points for the chart, thinned out evenly when there are very many."""
    points = [point_of(each) for each in events if each.type.endswith(".progress")]
    return points[:: max(1, len(points) // POINTS_MOST)]


def scores_of(
    evaluations: Sequence[tuple[Evaluation, Sequence[EvaluationScore]]],
) -> tuple[list[str], list[dict[str, Any]]]:
    """Subjects (the result first, then its parents) and one row for each set and metric."""
    scored = [(each, scores) for each, scores in evaluations if each.kind != CHECK]
    parent = {score.subject: not score.is_of_result for _, scores in scored for score in scores}
    subjects = sorted(parent, key=lambda name: (parent[name], name != "base", name))
    rows = []
    for evaluation, scores in scored:
        for metric in dict.fromkeys(score.metric for score in scores):
            held = {score.subject: score for score in scores if score.metric == metric}
            better = _better(held.values(), metric)
            best = better(score.value for score in held.values()) if len(held) > 1 else None
            rows.append(
                {
                    "name": evaluation.name,
                    "metric": metric.replace("_", " "),
                    "better": "lower is better" if better is min else "higher is better",
                    "cells": [_cell(held.get(subject), best) for subject in subjects],
                }
            )
    return subjects, rows


def order_of(job: Job) -> dict[str, Any]:
    """The order for the job as a caller would write it: only what differs from the defaults, or all where
    this version would not take it.
    """
    try:
        said = stored_order(job.spec).model_dump(mode="json", exclude_defaults=True)
    except OrderOutdated:
        return job.spec
    return said if job.kind == "merge" else {"kind": job.kind, **said}


def recipe_of(job: Job) -> dict[str, Any]:
    """The job's recipe, inputs pinned, only what differs from the defaults; or the models it works on."""
    if "steps" not in job.recipe:
        return job.recipe
    try:
        return as_stored(Recipe, job.recipe).model_dump(mode="json", exclude_defaults=True)
    except OrderOutdated:
        return job.recipe


def calls_of(order: Mapping[str, Any], url: str) -> list[tuple[str, str]]:
    """The request that made a job, for the command line and for Python."""
    text = json.dumps(order, indent=2, ensure_ascii=False)
    curl = (
        f"curl {shlex.quote(url + '/v1/jobs')} \\\n"
        '  -H "Authorization: Bearer $MERGERY_API_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(text)}"
    )
    literal = repr(text) if "'''" in text else f"r'''{text}'''"
    python = (
        "import json\nimport os\nimport urllib.request\n\n"
        f"body = json.loads({literal})\n"
        "request = urllib.request.Request(\n"
        f"    {url + '/v1/jobs'!r},\n"
        "    json.dumps(body).encode(),\n"
        '    {"Authorization": "Bearer " + os.environ["MERGERY_API_KEY"],\n'
        '     "Content-Type": "application/json"},\n'
        ")\n"
        "with urllib.request.urlopen(request) as answer:\n"
        '    print(json.load(answer)["id"])'
    )
    return [("curl", curl), ("Python", python)]


def _expected(job: Job, phase: str) -> bool:
    output = job.spec.get("output") or {}
    measures = bool(((job.plan or {}).get("statistics") or {}).get("needed"))
    expected = {
        "measuring": measures or job.kind == "router",
        "merging": job.kind in ("merge", "materialise"),
        "searching": job.kind == "search",
        "evaluating": job.kind not in ("search", "router"),
        "uploading": bool(output.get("repo")),
    }
    return expected[phase]


def _facts(job: Job) -> list[tuple[str, str]]:
    progress = job.progress or {}
    rows = "Candidates" if job.kind == "search" else "Texts"
    facts: list[tuple[str, str]] = []
    if job.state in ACTIVE:
        for name, done, total, say in (
            ("Bytes", "bytes_done", "bytes_total", bytes_said),
            ("Tensors", "tensors_done", "tensors_total", lambda count: f"{count:,}"),
            (rows, "rows_done", "rows_total", lambda count: f"{count:,}"),
            ("Tokens", "tokens_done", "tokens_total", lambda count: f"{count:,}"),
            ("Blocks", "blocks_done", "blocks_total", lambda count: f"{count:,}"),
        ):
            if progress.get(total):
                facts.append((name, f"{say(progress.get(done) or 0)} of {say(progress[total])}"))
        if progress.get("tokens_per_second"):
            facts.append(("Speed", f"{progress['tokens_per_second']:,} tokens/s"))
        if progress.get("eta_seconds") is not None:
            facts.append(("Left in this phase", seconds_said(progress["eta_seconds"])))
    if job.started_at and job.finished_at:
        facts.append(("Took", took(job.started_at, job.finished_at)))
    to_come = () if is_terminal(job.state) else ("Download", "Result")
    told = ("Result",) if job.state == State.SUCCEEDED else to_come
    facts += [each for each in estimate_of(job.plan) if each[0] in told]
    stages = ((job.plan or {}).get("stages") or {}).items()
    if stages:
        facts.append(("Stages", ", ".join(stage_said(name, stage) for name, stage in stages)))
    taught = (job.result or {}).get("router") or {}
    if "accuracy" in taught:
        right, of = taught.get("held_out_accuracy", taught["accuracy"]), taught.get("held_out")
        facts.append(
            ("Right", f"{right:.0%} of {of} texts held out" if of else f"{right:.0%} of the examples")
        )
    if job.attempt > 1 or (job.state == State.QUEUED and job.attempt):
        facts.append(("Attempt", f"{job.attempt} of {job.max_attempts}"))
    facts.append(("Queue", job.queue))
    return facts


def _outcome(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the result went, if there is one; only an http link becomes one."""
    url = str(result.get("url") or "")
    passed = result.get("checked")
    checked = "" if passed is None else "It passed its checks." if passed else "It did not pass its checks."
    name = str(result.get("repo") or result.get("folder") or url)
    if not name:
        return None
    return {
        "said": "Pushed." if result.get("repo") else "Kept here.",
        "name": name,
        "url": url if url.startswith(("http://", "https://")) else "",
        "checked": checked,
        "failed": passed is False,
    }


def _better(held: Iterable[EvaluationScore], metric: str) -> Callable[[Iterable[float]], float]:
    told = next((score.higher_is_better for score in held if score.higher_is_better is not None), None)
    return max if (higher_is_better(metric) if told is None else told) else min


def _cell(score: EvaluationScore | None, best: float | None) -> dict[str, Any] | None:
    if score is None:
        return None
    stderr = None if score.stderr is None else f"{score.stderr:.2g}"
    return {
        "value": number_said(score.value),
        "stderr": stderr,
        "best": best is not None and score.value == best,
    }
