"""``docs/quality.md``: every method on every bench that was run, as tables and plots."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from quality.bench import Bench
from quality.cache import write
from quality.candidates import AVERAGE, LADDER
from quality.evidence import Outcome, made, means
from quality.merging import machine
from quality.plot import Point, dots
from quality.reasons import REASONS
from quality.tried import Tried

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = "figures"
INTRODUCTION = """# How good is every method?

Written by `{command}` on {date}, with {versions}, on {machine}; other work ran on the same cores, so clock
times are upper bounds and CPU seconds the better guide. [Which method?](which-method.md) draws conclusions,
[AIM](aim.md) and [searching](search-proof.md) have pages of their own, [methods](methods.md) lists settings.

**How it was done.** Models and texts come out of packages, nothing else is fetched. Every method merges *all*
experts of a bench through the engine (`merge.run`), at its defaults but for one coefficient, which is looked
for on validation items the same way for all: on the ladder {ladder}, from the method's start upwards while
the score gets better, else downwards (methods without `scale` have another ladder, or none). It is chosen on
the first seed and holds for all. Methods that prepare task vectors are followed by task arithmetic, methods
that adjust a result follow it. Then each is scored on test items that were never looked at; every seed has
experts and test items of its own, and numbers are means over seeds. **±** is one standard error over test
items. *Over averaging* is the distance to `linear`, paired item by item, which is why its error is smaller.
Seconds, CPU seconds and memory are of one merge on one thread,
without loading and scoring (median over seeds; memory is beyond what was held before, of the largest merge).

**What it is not.** Small models and short trainings: an order of methods here is a hint, not a promise.
"""


def write_quality(outcomes: Sequence[Outcome], command: str, docs: Path = DOCS) -> None:
    """Writes the page and its plots."""
    facts = made(command)
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    ladder = ", ".join(f"{rung:g}" for rung in LADDER)
    head = INTRODUCTION.format(
        command=command, date=facts["date"], versions=versions, machine=machine(), ladder=ladder
    )
    parts = [head, *(_section(outcome, docs) for outcome in outcomes)]
    write(docs / "quality.md", "\n".join(parts))


def _section(outcome: Outcome, docs: Path) -> str:
    bench = outcome.bench
    file = f"{FOLDER}/quality-{bench.name}.svg"
    write(docs / file, _plot(outcome))
    lines = [
        f"## {bench.title}",
        "",
        bench.about,
        "",
        f"{seeds_of(outcome.seeds, bench)} Packages: {_listed(bench.packages)}.",
        "",
        f"![{bench.unit} of every method]({file})",
        "",
        *_table(outcome),
        "",
        *_not_run(outcome.tried),
        *_below(outcome),
    ]
    return "\n".join(lines)


def seeds_of(seeds: Sequence[int], bench: Bench) -> str:
    """How many seeds were run, and what one is."""
    count = "**One seed** was run" if len(seeds) == 1 else f"**{len(seeds)} seeds** were run"
    return f"{count} ({', '.join(map(str, seeds))}); a seed is {bench.seed_varies}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _ranked(outcome: Outcome) -> list[Tried]:
    ran = [tried for tried in outcome.tried if not tried.why_not]
    return sorted(ran, key=lambda tried: -tried.headline[0])


def _table(outcome: Outcome) -> Iterator[str]:
    bench = outcome.bench
    tasks = [*bench.tasks, *bench.also]
    yield f"| method | at | {bench.unit} | over averaging | {' | '.join(tasks)} | s | CPU s | MiB |"
    yield "|---|---|---|---|" + "---|" * (len(tasks) + 3)
    yield _bound(bench, "*base*", outcome.base, means([b.base for b in outcome.bounds]))
    for tried in _ranked(outcome):
        yield _row(outcome, tried)
    own = means([b.own for b in outcome.bounds])
    yield _bound(bench, "*experts, each on its own*", outcome.experts, own)


def _bound(bench: Bench, name: str, headline: float, scores: Mapping[str, float]) -> str:
    cells = [_score(scores[task]) if task in scores else "" for task in (*bench.tasks, *bench.also)]
    return f"| {name} | | {headline:.1f} | | {' | '.join(cells)} | | | |"


def _row(outcome: Outcome, tried: Tried) -> str:
    scores = means(tried.scores)
    cells = [_score(scores[task]) for task in (*outcome.bench.tasks, *outcome.bench.also)]
    at = "" if tried.value is None else f"{tried.setting} {tried.value:g}"
    over, error = tried.over(outcome.average)
    distance = "" if tried.name == AVERAGE else f"{over:+.1f} ± {error:.1f}"
    value, own_error = tried.headline
    chain = " + ".join(f"`{step['method']}`" for step in tried.steps)
    chain += f" ({tried.variant})" if tried.variant else ""
    taken = [
        sorted(cost[key] for cost in tried.costs) for key in ("seconds", "cpu_seconds", "peak_mebibytes")
    ]
    seconds, cpu = (values[len(values) // 2] for values in taken[:2])
    return (
        f"| {chain} | {at} | **{value:.1f}** ± {own_error:.1f}{_range(tried)} "
        f"| {distance} | {' | '.join(cells)} | {seconds:.1f} | {cpu:.1f} | {taken[2][-1]:.0f} |"
    )


def _range(tried: Tried) -> str:
    """How far seeds lie apart."""
    low, high = min(tried.headlines), max(tried.headlines)
    return f" ({low:.1f} to {high:.1f})" if len(tried.headlines) > 1 else ""


def _score(value: float) -> str:
    """A percentage, or bits per byte with the sign turned back."""
    return f"{value:.1f}" if value > 0 else f"{-value:.3f}"


def _not_run(tried: Sequence[Tried]) -> Iterator[str]:
    missing = [each for each in tried if each.why_not]
    if missing:
        yield "Not run:"
        yield ""
        yield from (f"- `{each.label}`: {each.why_not}" for each in missing)
        yield ""


def _below(outcome: Outcome) -> Iterator[str]:
    """Why some are below plain averaging, where they are."""
    below = [t for t in _ranked(outcome) if t.over(outcome.average)[0] < 0]
    if outcome.bench.name == "a" and below:
        yield "Below plain averaging:"
        yield ""
        yield from (f"- `{t.name}`: {REASONS.get(t.name, 'no reason is known.')}" for t in below)
        yield ""


def _plot(outcome: Outcome) -> str:
    rows = {tried.label: [Point(*tried.headline)] for tried in _ranked(outcome)}
    marks = {"base": outcome.base, "averaging": outcome.average.headline[0], "experts": outcome.experts}
    return dots(outcome.bench.title, outcome.bench.unit, rows, marks)
