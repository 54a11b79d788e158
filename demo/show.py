"""What the demo prints: one bar a phase while the job runs, then the scores of the result beside its
parents'.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from demo.families import Family

ENDS = ("succeeded", "failed", "cancelled", "expired")
POLL_SECONDS = 0.2

Call = Callable[[str], Any]
"""GET on the API: path in, plain data out."""


def size(count: float) -> str:
    """Bytes for people.

    >>> size(5_200_000)
    '5.2 MB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@dataclass
class Phase:
    """One phase as far as it is known: its share done, its amounts, its seconds once it is over."""

    name: str
    began: datetime
    fraction: float = 0.0
    amounts: str = ""
    seconds: float | None = None


@dataclass
class Story:
    """Follows a job: feed it events and snapshots of the job, read ``phases``.

    A quick phase may be over before anybody has seen progress of it, so what it moved is then told from the
    plan.
    """

    totals: Mapping[str, str] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    seq: int = 0

    def hear(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Takes in new events, in order."""
        for event in events:
            self.seq = event["seq"]
            at = datetime.fromisoformat(event["at"])
            kind = event["type"].partition(".")[2]
            if kind == "phase":
                self._close(at)
                self.phases.append(Phase(event["data"]["phase"], at))
            elif kind in ENDS:
                self._close(at)

    def see(self, job: Mapping[str, Any]) -> None:
        """Takes in the job as it is now."""
        plan = job.get("plan")
        if plan and not self.totals:
            self.totals = totals_of(plan)
        now = self.phases[-1] if self.phases else None
        if now is not None and now.seconds is None and job["phase"] == now.name:
            progress = job["progress"]
            now.fraction = max(now.fraction, progress.get("fraction") or 0.0)
            now.amounts = amounts_of(progress) or now.amounts

    def _close(self, at: datetime) -> None:
        if self.phases and self.phases[-1].seconds is None:
            last = self.phases[-1]
            last.seconds, last.fraction = (at - last.began).total_seconds(), 1.0
            last.amounts = self.totals.get(last.name, "")


def totals_of(plan: Mapping[str, Any]) -> dict[str, str]:
    """What each phase moves in all, by the plan."""
    estimate, output = plan["estimate"], size(plan["estimate"]["output_bytes"])
    return {
        "downloading": size(estimate["download_bytes"]),
        "merging": f"{plan['counts']['tensors']} tensors, {output}",
        "uploading": output,
    }


def amounts_of(progress: Mapping[str, Any]) -> str:
    """Tensors, bytes and texts done, as far as the phase counts them."""
    parts = []
    if progress.get("tensors_total"):
        parts.append(f"{progress['tensors_done']}/{progress['tensors_total']} tensors")
    if progress.get("bytes_total"):
        parts.append(f"{size(progress['bytes_done'])} of {size(progress['bytes_total'])}")
    if progress.get("rows_total"):
        parts.append(f"{progress['rows_done']}/{progress['rows_total']} texts")
    return ", ".join(parts)


def follow(job_id: str, get: Call, console: Console) -> dict[str, Any]:
    """Shows a job until it ends and returns it: bars on a terminal, a line a phase elsewhere."""
    view = Bars(console) if console.is_terminal else Lines(console)
    story, job = Story(), {"state": "queued"}
    with view:
        while True:
            ended = job["state"] in ENDS  # seen before the events are read, so that none is missed
            story.hear(get(f"/v1/jobs/{job_id}/events?after={story.seq}&limit=1000")["data"])
            story.see(job) if "plan" in job else None
            view.draw(story)
            if ended:
                return job
            job = get(f"/v1/jobs/{job_id}")
            if job["state"] not in ENDS:
                time.sleep(POLL_SECONDS)


class Bars:
    """One bar a phase, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[amounts]}"),
            TextColumn("[dim]{task.fields[took]}"),
            console=console,
        )
        self._bars: list[TaskID] = []

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def draw(self, story: Story) -> None:
        """Brings the bars up to date."""
        for phase in story.phases[len(self._bars) :]:
            self._bars.append(self._progress.add_task(phase.name, total=1.0, amounts="", took=""))
        for bar, phase in zip(self._bars, story.phases, strict=True):
            took = "" if phase.seconds is None else f"{phase.seconds:.1f} s"
            self._progress.update(bar, completed=phase.fraction, amounts=phase.amounts, took=took)


class Lines:
    """A line a phase, printed when it is over; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console, self._told = console, 0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def draw(self, story: Story) -> None:
        """Prints the phases that have ended since the last call."""
        for phase in story.phases[self._told :]:
            if phase.seconds is None:
                return
            amounts = f"  {phase.amounts}" if phase.amounts else ""
            self._console.print(f"  {phase.name:<12} {phase.seconds:6.1f} s{amounts}", highlight=False)
            self._told += 1


@dataclass(frozen=True)
class Standing:
    """Scores of every model on every set, and their mean over the sets that count; the result is first."""

    sets: tuple[str, ...]
    rows: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    higher_is_better: bool

    def best_parent(self) -> str:
        """The parent with the best mean."""
        better = max if self.higher_is_better else min
        return better((name for name in self.means if name != "result"), key=lambda name: self.means[name])

    def result_wins(self) -> bool:
        """Whether the result's mean is better than every parent's."""
        result, parent = self.means["result"], self.means[self.best_parent()]
        return result > parent if self.higher_is_better else result < parent


def standing(evaluations: Sequence[Mapping[str, Any]], family: Family) -> Standing:
    """Reads the scores out of the job's evaluations."""
    found = {each["name"]: each["scores"] for each in evaluations}
    rows: dict[str, dict[str, float]] = {name: {} for name in ("result", *family.folders)}
    for each in family.sets:
        metric = "accuracy" if each.kind == "choice" else "bits_per_byte"
        for score in found[each.name]:
            if score["metric"] == metric:
                rows[score["subject"]][each.name] = score["value"]
    counted = [each.name for each in family.sets if each.counts]
    means = {name: fmean(scores[set_] for set_ in counted) for name, scores in rows.items()}
    return Standing(tuple(each.name for each in family.sets), rows, means, family.higher_is_better)


def score_table(scores: Standing, family: Family) -> Table:
    """The result beside its parents; the best of each column is bold."""
    units = {"choice": "accuracy", "perplexity": "bits/byte"}
    better = {each.name: max if each.kind == "choice" else min for each in family.sets}
    counted = sum(each.counts for each in family.sets)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for each in family.sets:
        table.add_column(f"{each.name}\n{units[each.kind]}", justify="right", no_wrap=True)
    whole = "" if counted == len(family.sets) else f" of {counted}"
    table.add_column(f"mean{whole}\n{units[family.sets[0].kind]}", justify="right", no_wrap=True)
    best_mean = (max if family.higher_is_better else min)(scores.means.values())
    for name, row in scores.rows.items():
        cells = [
            _cell(row[set_], better[set_](other[set_] for other in scores.rows.values()))
            for set_ in scores.sets
        ]
        label = "[bold]merged[/bold]" if name == "result" else name
        table.add_row(label, *cells, _cell(scores.means[name], best_mean))
    return table


def _cell(value: float, best: float) -> str:
    return f"[bold]{value:.4f}[/bold]" if value == best else f"{value:.4f}"
