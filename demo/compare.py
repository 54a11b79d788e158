"""How the demo's recipe was chosen: several recipes on the committed family, scored on its validation texts.

usage: python -m demo.compare [--split validation|held-out]
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from demo.families import HERE
from demo.texts import DOMAINS
from merge.checkpoint.index import index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from scoring.runner import score_model
from scoring.tasks import Task, parse_task

HOME = HERE / "family"
EXPERTS = ("python", "dictionary")
SPLITS = {"validation": HOME / "texts/validation", "held-out": HOME / "texts"}
CANDIDATES: tuple[tuple[Mapping[str, Any], ...], ...] = (
    ({"method": "linear"},),
    *(({"method": "task_arithmetic", "scale": scale},) for scale in (0.4, 0.5, 0.6, 0.7, 1.0)),
    *(
        ({"method": "ties", "density": density, "scale": scale},)
        for density, scale in ((0.2, 1.0), (0.5, 1.0), (1.0, 0.7), (1.0, 1.0))
    ),
    ({"method": "dare", "density": 0.7}, {"method": "task_arithmetic", "scale": 0.5}),
)


def merge_family(steps: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Merges the committed family with the engine alone, into ``out``."""
    folders = {name: HOME / name for name in ("base", *EXPERTS)}
    recipe = recipe_from(
        {
            "base": "base",
            "sources": [{"id": name, "model": name} for name in EXPERTS],
            "steps": [dict(step) for step in steps],
        }
    )
    indices = {name: index_folder(folder, name) for name, folder in folders.items()}
    run(
        make_plan(recipe, indices, budget=1 << 30),
        folders,
        out,
        budget_bytes=1 << 28,
        threads=1,
        on_progress=lambda _: None,
        should_stop=lambda: False,
        on_shard=lambda _: None,
    )
    return out


def read_sets(folder: Path, limit: int | None = None) -> list[Task]:
    """The texts of every domain in ``folder``."""
    return [
        parse_task(name, "perplexity", (folder / f"{name}.jsonl").read_bytes(), file=name, limit=limit)
        for name in DOMAINS
    ]


def bits_per_byte(model: Path, sets: Sequence[Task]) -> list[float]:
    """One number a domain."""
    return [score.value for score in score_model(model, sets) if score.metric == "bits_per_byte"]


def main() -> None:
    """Prints one line a model: bits per byte of each domain, and their mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=sorted(SPLITS), default="validation")
    sets = read_sets(SPLITS[parser.parse_args().split])

    def tell(name: str, model: Path) -> None:
        values = bits_per_byte(model, sets)
        cells = [*(f"{value:.4f}" for value in values), f"{fmean(values):.4f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    print(f"| model | {' | '.join(DOMAINS)} | mean |\n|---|{'---|' * (len(DOMAINS) + 1)}")
    for name in ("base", *EXPERTS):
        tell(name, HOME / name)
    with tempfile.TemporaryDirectory() as scratch:
        for number, steps in enumerate(CANDIDATES):
            name = " + ".join(" ".join(str(value) for value in step.values()) for step in steps)
            tell(name, merge_family(steps, Path(scratch) / str(number)))


if __name__ == "__main__":
    main()
