"""``docs/aim.md``: what activation-informed merging does on benches B and C."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from quality.aim import AIM, OMEGAS, PLAIN, UNIFORM, Agreement, Variant, names_of
from quality.bench import Bench, headline
from quality.cache import write
from quality.evidence import made, means
from quality.merging import machine
from quality.page import DOCS, FOLDER, seeds_of
from quality.plot import Point, plane
from quality.runner import Bounds
from quality.tried import Estimate, seen, signed

INTRODUCTION = """# What does AIM do?

Written by `{command}` on {date}, with {versions}, on {machine} that other work ran on too.

Activation-informed merging ([`aim`](methods.md#aim),
[arXiv:2502.02421](https://arxiv.org/abs/2502.02421)) takes a merged model and holds back the changes to
the base's most active input channels: the most active one goes `omega` of the way from the base to the
merge, one that is never active goes all of it. Its paper compares merges with and without it. But holding
back is also *shrinking*, and a merge that overshoots gets better from any shrinking. So every merge is
shown here three ways: without AIM, with it, and with a control that shrinks every tensor to the same
norm, all channels alike (`control: uniform`). What AIM does better than the control is its choice of
channels; the rest is shrinking.

Coefficients are chosen on validation items, for every merge without AIM, and kept with it and with the
control. Scores are on test items, means over seeds. **±** is one standard error over test items; differences
are paired item by item, and **bold** where they are more than two of their standard errors. With so many
comparisons one in twenty is bold by chance.
"""


FORMULA = """## Beside the formula of the released code

The release computes, in float32, base + (merged - base) x (1 - s (1 - omega)) with s = |a| / max |a|, a being
the sum of a module's input magnitudes. On bench B (float32 checkpoints, seed 0, task arithmetic at 0.3, omega
0.4) the engine's `aim` was compared with that formula, written down by itself in `quality/aim.py`, on the
same saliency: {entries:,} weights of {tensors} tensors, {equal:.1%} of them the same bit for bit, the largest
difference {worst:.1f} units of the last place of a float32 of the weight's size. (The release itself sums
activations in bfloat16 and writes a tied head's relaxation into the input embedding too; we do neither unless
asked: [methods](methods.md#aim).)"""


@dataclass(frozen=True)
class Grid:
    """All variants on one bench."""

    bench: Bench
    seeds: tuple[int, ...]
    bounds: tuple[Bounds, ...]
    variants: tuple[Variant, ...]

    def at(self, merge: str, control: str, omega: float) -> Variant | None:
        """One variant, if it ran."""
        return next(
            (
                v
                for v in self.variants
                if (v.merge, v.control, v.omega) == (merge, control, omega) and not v.tried.why_not
            ),
            None,
        )

    @property
    def own(self) -> str:
        """What the base itself is good at."""
        return self.bench.also[0]


def write_aim(grids: Sequence[Grid], agreed: Agreement, command: str, docs: Path = DOCS) -> None:
    """Writes the page and its plots."""
    facts = made(command)
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    head = INTRODUCTION.format(command=command, date=facts["date"], versions=versions, machine=machine())
    parts = [
        head,
        *_in_short(grids),
        *(_section(grid, docs) for grid in grids),
        FORMULA.format(**asdict(agreed)),
    ]
    write(docs / "aim.md", "\n".join(parts) + "\n")


def _in_short(grids: Sequence[Grid]) -> Iterator[str]:
    yield "## In short\n"
    for grid in grids:
        yield f"**{grid.bench.title}** (seeds run: {len(grid.seeds)}):\n"
        yield f"- Beside the same merge without AIM: {_tally(grid, PLAIN)}"
        yield f"- Beside the control, which shrinks as much: {_tally(grid, UNIFORM)}\n"


def _tally(grid: Grid, other: str) -> str:
    """In how many of the pairs AIM is better or worse, in the experts' tasks and in the base's own."""
    gains, kept = [], []
    for merge, omega in ((merge, omega) for merge in names_of(grid.variants) for omega in OMEGAS):
        one, two = grid.at(merge, AIM, omega), grid.at(merge, other, 1.0 if other == PLAIN else omega)
        if one is not None and two is not None:
            gains.append(one.tried.over(two.tried))
            kept.append(one.tried.score_over(two.tried, grid.own))
    return f"the experts' tasks {_counts(gains)}; the base's own text {_counts(kept)}."


def _counts(differences: Sequence[Estimate]) -> str:
    better = sum(seen(each) and each[0] > 0 for each in differences)
    worse = sum(seen(each) and each[0] < 0 for each in differences)
    return f"better in {better}, worse in {worse} of {len(differences)} pairs, no difference seen in the rest"


def _section(grid: Grid, docs: Path) -> str:
    bench, file = grid.bench, f"{FOLDER}/aim-{grid.bench.name}.svg"
    write(docs / file, _plot(grid))
    tasks = list(bench.tasks)
    base = means([b.base for b in grid.bounds])
    own = means([b.own for b in grid.bounds])
    lines = [
        f"## {bench.title}",
        "",
        f"{bench.about} {seeds_of(grid.seeds, bench)}",
        "",
        f"![experts' tasks beside the base's own text]({file})",
        "",
        f"| merge | held back | {bench.unit} | over none | over control | {' | '.join(tasks)} | "
        f"{grid.own}, bits/byte | over none | over control |",
        "|---|---|---|---|---|" + "---|" * (len(tasks) + 3),
        f"| *base* | | {_headline(grid, base):.1f} | | | {_cells(base, tasks)} | {-base[grid.own]:.4f} | | |",
        *(_row(grid, v) for v in grid.variants if not v.tried.why_not),
        f"| *experts* | | {_headline(grid, own):.1f} | | | {_cells(own, tasks)} | | | |",
        "",
        *(f"- `{v.merge}`: {v.tried.why_not}" for v in grid.variants if v.tried.why_not),
    ]
    return "\n".join(lines) + "\n"


def _headline(grid: Grid, scores: Mapping[str, float]) -> float:
    base, own = means([b.base for b in grid.bounds]), means([b.own for b in grid.bounds])
    return headline(grid.bench, scores, base, own)


def _row(grid: Grid, variant: Variant) -> str:
    tried = variant.tried
    plain = grid.at(variant.merge, PLAIN, 1.0) if variant.control != PLAIN else None
    control = grid.at(variant.merge, UNIFORM, variant.omega) if variant.control == AIM else None
    gains = [signed(tried.over(o.tried), 1) if o else "" for o in (plain, control)]
    losses = [signed(_turned(tried.score_over(o.tried, grid.own)), 4) if o else "" for o in (plain, control)]
    held = {PLAIN: "no", AIM: f"AIM {variant.omega:g}", UNIFORM: f"control {variant.omega:g}"}
    at = "" if tried.value is None else f" at {tried.value:g}"
    cells = _cells(means(tried.scores), list(grid.bench.tasks))
    (value, error), (own, own_error) = tried.headline, _turned(tried.score_of(grid.own))
    return (
        f"| `{variant.merge}`{at} | {held[variant.control]} | {value:.1f} ± {error:.1f} | {gains[0]} "
        f"| {gains[1]} | {cells} | {own:.4f} ± {own_error:.4f} | {losses[0]} | {losses[1]} |"
    )


def _turned(estimate: Estimate) -> Estimate:
    """Bits per byte as they are read elsewhere: less is better."""
    return -estimate[0], estimate[1]


def _cells(scores: Mapping[str, float], tasks: Sequence[str]) -> str:
    return " | ".join(f"{scores[t]:.1f}" if scores[t] > 0 else f"{-scores[t]:.3f}" for t in tasks)


def _plot(grid: Grid) -> str:
    """Each merge's way from none over AIM's strengths: the base's own text to the right is worse, up is
    better.
    """
    groups = {}
    for merge in names_of(grid.variants):
        for control in (AIM, UNIFORM):
            points = [grid.at(merge, PLAIN, 1.0), *(grid.at(merge, control, o) for o in reversed(OMEGAS))]
            found = [v for v in points if v is not None]
            if len(found) == len(points) and merge in ("task_arithmetic", "ties"):
                groups[f"{merge}, {control}"] = [
                    (
                        ("none" if control == AIM else "") if v.control == PLAIN else f"{v.omega:g}",
                        Point(-v.tried.score_of(grid.own)[0]),
                        Point(v.tried.headline[0]),
                    )
                    for v in found
                ]
    return plane(grid.bench.title, (f"{grid.bench.also[0]}, bits per byte", grid.bench.unit), groups)
