"""The cut of bench A that ``make test`` runs: two of its tasks, short trainings, one seed, a few merges.

Its packages are two wheels, fetched once; experts are kept, merges are made and scored anew every time. The
bars are a good three standard errors from what sound merges reach; a method that is broken falls below them.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from quality.bench import headline
from quality.candidates import candidate
from quality.encoder import EncoderBench, Items, Training
from quality.runner import Runner

TASKS = ("reuters8", "newsgroups")
TRAINING = Training(steps=40, batch=16, warm_up=5, longest=32)
ITEMS = Items(validation=1, test=120)
BASE, EXPERTS, SUM, OVERSHOT = "base", "experts", "task_arithmetic 0.7", "task_arithmetic 3"
TRIED: Mapping[str, tuple[str, float | None]] = {
    "linear": ("linear", None),
    SUM: ("task_arithmetic", 0.7),
    OVERSHOT: ("task_arithmetic", 3.0),
    "ties 1.5": ("ties", 1.5),
    "tsv_m 1": ("tsv_m", 1.0),
    "regmean 0.9": ("regmean", 0.9),
}
MODELS = ("base", "seed-0", "texts")
"""What is kept from one run to the next."""
GAIN, ROOM, DROP = 9.0, 4.0, 4.0
"""Points of mean accuracy: what a merge gains over the base at least, what it may have over the experts, and
what far too large a sum loses at least.
"""


def cut(root: Path, say: Callable[[str], None] = print) -> list[str]:
    """Runs it; what is wrong, a line each."""
    bench = EncoderBench(root, TASKS, TRAINING, ITEMS, say)
    bench.family(0)
    with tempfile.TemporaryDirectory(prefix="mergery-cut-") as made:
        for name in MODELS:
            (Path(made) / name).symlink_to(bench.folder / name)
        bench.folder = Path(made)
        return _run(Runner(bench, (0,), say))


def _run(runner: Runner) -> list[str]:
    bench = runner.bench
    bounds = runner.bounds(0)
    reached = {
        BASE: headline(bench, bounds.base, bounds.base, bounds.own),
        EXPERTS: headline(bench, bounds.own, bounds.base, bounds.own),
    }
    failed = []
    for name, (method, value) in TRIED.items():
        tried = runner.tried(candidate(method), value)
        if tried.why_not:
            failed.append(f"{name} was not run: {tried.why_not}")
        else:
            reached[name] = tried.headline[0]
    return failed + fallen(reached)


def fallen(reached: Mapping[str, float]) -> list[str]:
    """Which of these mean accuracies, by name, are not where sound merges are.

    >>> fallen({"base": 50.0, "experts": 80.0, "linear": 51.0})
    ['linear reached 51.0; the bar is 59.0 to 84.0']
    """
    base, experts = reached[BASE], reached[EXPERTS]
    told = []
    for name, value in reached.items():
        if name not in (BASE, EXPERTS, OVERSHOT) and not base + GAIN <= value <= experts + ROOM:
            told.append(f"{name} reached {value:.1f}; the bar is {base + GAIN:.1f} to {experts + ROOM:.1f}")
    if OVERSHOT in reached and SUM in reached and not reached[OVERSHOT] <= reached[SUM] - DROP:
        bar = reached[SUM] - DROP
        told.append(f"{OVERSHOT} reached {reached[OVERSHOT]:.1f}; so large a sum stays below {bar:.1f}")
    return told
