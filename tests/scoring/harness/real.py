"""Our tasks through the real lm-evaluation-harness, beside our own scorers: ``make eval`` runs it.

Apart from the tests because the harness with all that it needs takes longer to install than they take to run.
"""

import json
import math
import sys
from pathlib import Path

from scoring.harness.config import METRICS
from scoring.harness.run import run_harness
from scoring.harness.task import HarnessTask
from scoring.runner import score_model
from scoring.score import higher_is_better
from scoring.settings import LmEvalSettings
from scoring.tasks import Task, parse_task

MODEL = Path(__file__).resolve().parents[3] / "demo" / "family" / "python"
ROWS = [
    {"q": f"The colour of number {place} is", "c": [" blue", " a fish", " green"], "a": place % 3}
    for place in range(12)
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{c}}",
    "doc_to_target": "{{a}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_bytes"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_target": "{{q}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
WRITING = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "blue",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "ignore_case": True}],
}


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def harness(name: str, config: dict[str, object]) -> HarnessTask:
    task = parse_task(name, "lm_eval", lines(ROWS), file=name, settings=LmEvalSettings(config=config))
    assert isinstance(task, HarnessTask)
    return task


def main() -> int:
    """Says how far the two are apart; 1 if that is more than rounding."""
    tasks = [harness("choice", CHOICE), harness("rolling", ROLLING), harness("writing", WRITING)]
    theirs = {(score.task, score.metric): score for score in run_harness(MODEL, tasks)}
    choice = lines([{"context": row["q"], "choices": row["c"], "answer": row["a"]} for row in ROWS])
    own: list[Task] = [
        parse_task("choice", "choice", choice, file="choice.jsonl"),
        parse_task("rolling", "perplexity", lines([{"text": row["q"]} for row in ROWS]), file="texts.jsonl"),
    ]
    ours = {(score.task, score.metric): score for score in score_model(MODEL, own, per_example=True)}
    pairs = [
        (theirs["choice", "acc_bytes"], ours["choice", "accuracy"]),
        (theirs["rolling", "bits_per_byte"], ours["rolling", "bits_per_byte"]),
    ]
    apart = [
        abs(a - b) for x, y in pairs for a, b in zip(x.per_example or (), y.per_example or (), strict=True)
    ]
    sys.stdout.write(f"largest difference of {len(apart)} items: {max(apart):.2e}\n")
    import lm_eval.api.metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import higher_is_better_registry

    known = [name for names in METRICS.values() for name in names]
    wrong = [name for name in known if higher_is_better_registry.get(name) is not higher_is_better(name)]
    sys.stdout.write(f"{len(known)} metrics, the wrong way round: {wrong or 'none'}\n")
    found = theirs["writing", "exact_match"].value
    return int(max(apart) > 1e-4 or bool(wrong) or not math.isfinite(found))


if __name__ == "__main__":
    sys.exit(main())
