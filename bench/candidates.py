"""What a candidate of a search costs beside scoring it: merge into memory and score, against scoring alone.

``python -m bench.candidates`` takes the shipped family (0.86 million parameters, the size of bench B) and 64
texts, and turns between both, so that they meet the same weather. Times are of the processor; the bar is 1.3.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from merge.checkpoint.index import index_folder
from merge.in_memory import InMemory
from merge.plan import make_plan
from merge.recipe import Recipe
from scoring.candidates import Candidates
from scoring.tasks import parse_task

FAMILY = Path(__file__).parent.parent / "demo" / "family"
BUDGET = 256 << 20
BAR = 1.3
BYTES = 320


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
    print(f"{'chain':24} {'score, s':>9} {'merge + score, s':>17} {'ratio':>6}   bar {BAR}")
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        scorer = Candidates.open(base, [task])
        for steps in (["task_arithmetic"], ["ties"], ["dare", "ties"], ["model_stock"], ["tsv_m"]):
            document = {
                "base": "o/base",
                "sources": [f"o/{key}" for key in folders if key != "base"],
                "steps": steps,
            }

            def candidate(document: Mapping[str, object] = document) -> None:
                plan = make_plan(Recipe.model_validate(document), models, budget=BUDGET)
                scorer.score(memory.tensors(plan))

            alone, both = paired(scorer.score, candidate, asked.repeat)
            print(f"{' + '.join(steps):24} {alone:9.3f} {both:17.3f} {both / alone:6.2f}")


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
