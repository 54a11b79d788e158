"""``docs/search-proof.md``: what searching gains on held-out items, and MAP's fronts beside brute force."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import Any

from quality.bench import Bench, Measure, right
from quality.cache import write
from quality.evidence import made
from quality.fronts import BAR, Compared, Front, mean_ratio
from quality.merging import machine
from quality.page import DOCS, FOLDER, seeds_of
from quality.plot import Point, dots, plane
from quality.tried import Tried, seen, signed
from quality.tuner import Tuned
from quality.tunings import BUDGET, HEADLINE

INTRODUCTION = """# Does searching pay?

Written by `{command}` on {date}, with {versions}, on {machine} that other work ran on too; CPU seconds are
the guide to what a search costs. [Searching](search.md) says what the methods do, [quality](quality.md) what
the benches are.

**How it was done.** Every search method of `search/` looks for settings of a merge that it fits: the same
driver as in the service, candidates merged in memory and scored on **validation** items. Its best candidate
is then scored on **test** items that no search has seen, and so is the same merge *untuned*: every setting
and weight at its default. **Over untuned** is the distance between them, paired item by item, with one
standard error over test items; **bold** is more than two of its errors. *Over averaging* is the distance to
the plain average of all experts, the harder test where the untuned merge is a bad one: `task_arithmetic`
adds all changes up whole unless told otherwise, which overshoots with several experts. A seed has experts,
test items and draws of its own; numbers are means over seeds. Candidates and seconds are of one search
(median over seeds); *merging* is the share of the seconds that is not scoring. Searches of numbers have the
same budget on a bench, {budgets}; those that choose among models are done when nothing helps any more.
"""

FRONTS = """## MAP's fronts beside brute force

On bench B, experts are added to the base, each with a weight between 0 and 1 that varies. An objective is
the share of an expert's gain that the merge keeps on its own domain's validation items, in per cent. A grid
measures every combination of weights; `map` fits quadratics to some candidates and measures points of the
front that these predict, those that add most volume, fitting again twice in between. The volume is that
between the front and the base, which keeps nothing and is `map`'s `reference`. The bar: at least {bar} of
the grid's volume with at most a quarter of its candidates.
"""


DIGITS: Mapping[Measure, int] = {"accuracy": 1, "likelihood": 3, "gain": 1}
"""After the point."""
LEAST = -20.0
"""What is further below averaging is not drawn."""


LIKELIHOOD = """So few questions make accuracy a stair with wide steps, of which a search sees little. Here a
question counts by log2 of its right answer's share in the likelihood of all four: 0 is certain, -2 a guess.
Accuracies stand beside it; no search has seen them. By this measure `ties` as it is leaves little to its
scale and density (0.02 on validation items), so here `line` and `grid` search in sums of the changes."""


@dataclass(frozen=True)
class Proof:
    """All searches on one bench."""

    bench: Bench
    seeds: tuple[int, ...]
    tuned: tuple[Tuned, ...]


def write_proof(proofs: Sequence[Proof], fronts: Sequence[Compared], command: str, docs: Path = DOCS) -> None:
    """Writes the page and its plots."""
    facts = made(command)
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    budgets = ", ".join(f"{count} candidates on {name.upper()}" for name, count in BUDGET.items())
    head = INTRODUCTION.format(
        command=command, date=facts["date"], versions=versions, machine=machine(), budgets=budgets
    )
    parts = [head, *(_section(proof, docs) for proof in proofs), *_fronts(fronts, docs)]
    write(docs / "search-proof.md", "\n".join(parts))


def _ran(proof: Proof) -> list[Tuned]:
    return [each for each in proof.tuned if each.why_not is None]


def _section(proof: Proof, docs: Path) -> str:
    bench, file = proof.bench, f"{FOLDER}/search-{proof.bench.name}.svg"
    lines = [f"## {bench.title}", "", f"{seeds_of(proof.seeds, bench)}", ""]
    beside = ""
    if bench.measure == "likelihood":
        lines += [LIKELIHOOD, ""]
        beside = " accuracy, %: untuned | tuned |"
    if _ran(proof):
        write(docs / file, _plot(proof))
        lines += [
            f"![{bench.unit}, untuned and tuned]({file})",
            "",
            f"| search | merge | what varies | candidates | CPU s | merging, % | validation: untuned | tuned "
            f"| test: untuned | tuned ({bench.unit}) | over untuned | over averaging |{beside}",
            "|" + "---|" * (12 + beside.count("|")),
            *(_row(each, bench) for each in _ran(proof)),
            "",
            *_not_better(proof),
        ]
    missing = [each for each in proof.tuned if each.why_not is not None]
    if missing:
        lines += ["Not run:", "", *(f"- `{each.tuning.method}`: {each.why_not}" for each in missing), ""]
    return "\n".join(lines)


def _row(each: Tuned, bench: Bench) -> str:
    tuned, untuned, average = _three(each)
    (value, error), (before, _) = tuned.headline, untuned.headline
    candidates = median(found["evaluations"] for found in each.found)
    digits = DIGITS[bench.measure]
    beside = ""
    if bench.measure == "likelihood":
        tasks = each.tuning.tasks or bench.tasks
        beside = "".join(f" {_accuracy(one, tasks):.1f} |" for one in (untuned, tuned))
    return (
        f"| `{each.tuning.method}` | {each.tuning.chain} | {each.tuning.about} | {candidates:g} "
        f"| {median(found['cpu_seconds'] for found in each.found):.0f} | {_merging(each):.0f} "
        f"| {mean(found['untuned'] for found in each.found):.{digits}f} "
        f"| {mean(_best(each, found) for found in each.found):.{digits}f} "
        f"| {before:.{digits}f} | {value:.{digits}f} ± {error:.{digits}f} "
        f"| {signed(tuned.over(untuned), digits)} | {signed(tuned.over(average), digits)} |{beside}"
    )


def _accuracy(one: Tried, tasks: Sequence[str]) -> float:
    """Mean over tasks."""
    return mean(one.score_of(right(task))[0] for task in tasks)


def _three(each: Tuned) -> tuple[Tried, Tried, Tried]:
    """The tuned merge, the untuned one, and the average."""
    assert each.tuned is not None and each.untuned is not None and each.average is not None
    return each.tuned, each.untuned, each.average


def _best(each: Tuned, found: Any) -> float:
    """The headline of the best candidate on validation items."""
    value: float = found["values"][each.tuning.objectives.index(HEADLINE)]
    return value


def _merging(each: Tuned) -> float:
    """How much of a candidate's seconds goes into its merge, in per cent."""
    both = mean(found["cpu_seconds"] for found in each.found)
    return 100 * mean(found["merging_cpu_seconds"] for found in each.found) / both if both else 0.0


def _not_better(proof: Proof) -> Iterator[str]:
    """What did not beat the untuned merge on test items beyond the noise, and why."""
    found = []
    for each in _ran(proof):
        tuned, untuned, _ = _three(each)
        over = tuned.over(untuned)
        if not (over[0] > 0 and seen(over)):
            found.append(f"- `{each.tuning.method}`: {_why(each, over, DIGITS[proof.bench.measure])}")
    if found:
        yield "Not better than the untuned merge on test items, by more than two standard errors:"
        yield ""
        yield from found
    else:
        yield "Every search beats the untuned merge on test items by more than two standard errors."
    yield ""


def _why(each: Tuned, over: tuple[float, float], digits: int) -> str:
    gain = mean(_best(each, found) - found["untuned"] for found in each.found)
    if over == (0.0, 0.0):
        return "its best candidate is the untuned merge."
    gained = (
        f"what it found is {gain:+.{digits}f} on validation items, "
        f"{over[0]:+.{digits}f} ± {over[1]:.{digits}f} on test items"
    )
    if gain <= 0:
        said = "none of its candidates is better than the untuned merge on validation items"
        return f"{said} ({gain:+.{digits}f})."
    if over[0] > 0:
        return f"{gained}: better, but too few test items to be sure."
    return f"{gained}: the best of many candidates on few items owes a part of its score to these items."


def _plot(proof: Proof) -> str:
    rows = {}
    for each in _ran(proof):
        tuned, untuned, average = _three(each)
        rows[each.tuning.method] = [
            Point(tuned.over(average)[0] - tuned.over(untuned)[0], 0.0, 4),
            Point(*tuned.over(average)),
        ]
    shown = {name: [point for point in points if point.value > LEAST] for name, points in rows.items()}
    title = f"{proof.bench.title}: untuned (grey) and tuned"
    return dots(title, f"over averaging: {proof.bench.unit}", shown, {"averaging": 0.0})


def _fronts(fronts: Sequence[Compared], docs: Path) -> Iterator[str]:
    if not fronts:
        return
    yield FRONTS.format(bar=BAR)
    yield "| experts | seed | grid: candidates | CPU s | volume | MAP: candidates | CPU s | volume | ratio |"
    yield "|" + "---|" * 9
    for _, group in groupby(fronts, key=lambda row: row.problem):
        rows = list(group)
        yield from (_front_row(row) for row in rows)
        yield f"| *mean* | | | | | | | | **{mean_ratio(rows):.3f}** |"
    yield ""
    yield from (_below(row) for row in fronts if row.ratio < BAR)
    yield ""
    shown = [row for row in fronts if len(row.problem.experts) == 2][:1]
    for row in shown:
        file = f"{FOLDER}/search-front.svg"
        write(docs / file, _front_plot(row))
        yield f"![both fronts, seed {row.seed}]({file})"
        yield ""


def _front_row(row: Compared) -> str:
    experts = ", ".join(row.problem.experts)
    sides = " | ".join(
        f"{side.candidates} | {side.cpu_seconds:.0f} | {_volume(side)}" for side in (row.grid, row.map)
    )
    share = row.map.candidates / row.grid.candidates
    return f"| {experts} | {row.seed} | {sides} | {row.ratio:.3f} (with {100 * share:.0f} % of them) |"


def _below(row: Compared) -> str:
    """Why MAP's front is smaller than the bar asks for."""
    measured, rivals = len(row.map.points), len(row.grid.points)
    return (
        f"- {', '.join(row.problem.experts)}, seed {row.seed}: below the bar. No candidate of the grid beats "
        f"{row.unbeaten} of the {measured} points on MAP's front, but the grid's has {rivals}: so few points "
        f"leave volume between them in {len(row.problem.experts)} dimensions."
    )


def _volume(front: Front) -> str:
    return f"{front.volume:,.0f}"


def _front_plot(row: Compared) -> str:
    one, other = row.problem.experts
    groups = {
        f"{name}, {front.candidates} candidates": [("", Point(x), Point(y)) for x, y in sorted(front.points)]
        for name, front in (("grid", row.grid), ("MAP", row.map))
    }
    return plane("Fronts that were measured", (f"{one}: gain kept, %", f"{other}: gain kept, %"), groups)
