"""What a candidate of a search costs beside scoring it: merge into memory and score, against scoring alone.

``python -m bench.candidates`` takes the shipped family (0.86 million parameters, the size of bench B) and 64
texts, and turns between both, so that they meet the same weather. No two candidates are alike: what a search
would vary varies. Times are of the processor; the bar is 1.3.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from merge.checkpoint.index import index_folder
from merge.in_memory import InMemory
from merge.plan import make_plan
from merge.recipe.recipe import Recipe
from scoring.candidates import Candidates
from scoring.tasks import parse_task

FAMILY = Path(__file__).parent.parent / "demo" / "family"
BUDGET = 256 << 20
BAR = 1.3
BYTES = 320
CHAINS = (
    ("task_arithmetic", "weight"),
    ("ties", "scale"),
    ("ties", "weight"),
    ("ties", "density"),
    ("dare ties", "ties.scale"),
    ("dare ties", "weight"),
    ("dare ties", "dare.density"),
    ("model_stock", "nothing"),
    ("tsv_m", "scale"),
    ("tsv_m", "weight"),
)
"""Steps, and what varies between candidates."""


def main() -> None:
    """Prints the median costs and their ratio for a few chains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--items", type=int, default=64)
    asked = parser.parse_args()
    base, *experts = sorted(path for path in FAMILY.iterdir() if (path / "config.json").is_file())
    folders = {"base": base} | {f"m{at}": each for at, each in enumerate(experts)}
    models = {key: index_folder(folder) for key, folder in folders.items()}
    rows = (json.dumps({"text": text}) for text in texts(asked.items))
    task = parse_task("texts", "perplexity", "\n".join(rows).encode(), file="texts.jsonl")
    print(f"{'chain':18} {'varies':14} {'score, s':>9} {'merge + score, s':>17} {'ratio':>6}   bar {BAR}")
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        scorer = Candidates.open(base, [task])
        for chain, varies in CHAINS:
            turns = itertools.count(1)

            def candidate(chain: str = chain, varies: str = varies, turns: Iterator[int] = turns) -> None:
                document = varied(chain, varies, list(folders)[1:], next(turns))
                plan = make_plan(Recipe.model_validate(document), models, budget=BUDGET)
                scorer.score(memory.tensors(plan))

            alone, both = paired(scorer.score, candidate, asked.repeat)
            said = chain.replace(" ", " + ")
            print(f"{said:18} {varies:14} {alone:9.3f} {both:17.3f} {both / alone:6.2f}")


def varied(chain: str, varies: str, sources: Sequence[str], turn: int) -> dict[str, Any]:
    """The recipe of a turn's candidate, unlike that of any other turn where something varies."""
    value = 0.2 + 0.6 / turn
    steps: list[dict[str, Any]] = [{"method": name} for name in chain.split()]
    method, _, setting = varies.rpartition(".")
    for step in steps:
        if varies not in ("weight", "nothing") and method in ("", step["method"]):
            step[setting] = value
    weights = [value if varies == "weight" and place == 0 else 1.0 for place in range(len(sources))]
    return {
        "base": "o/base",
        "sources": [
            {"id": name, "model": f"o/{name}", "weight": weight}
            for name, weight in zip(sources, weights, strict=True)
        ],
        "steps": steps,
    }


def texts(count: int) -> list[str]:
    """Held-out texts of the family, cut to about 128 tokens."""
    whole = "".join(path.read_text(encoding="utf-8") for path in sorted((FAMILY / "texts").glob("*.jsonl")))
    lines = " ".join(str(json.loads(line).get("text", "")) for line in whole.splitlines())
    return [lines[at * BYTES : (at + 1) * BYTES] for at in range(count)]


def paired(one: Callable[[], object], other: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Median seconds of the processor of both, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeat + 1):
        for work, kept in zip((one, other), times, strict=True):
            begun = time.process_time()
            work()
            if turn:  # the first warms up
                kept.append(time.process_time() - begun)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
