"""Our tasks through the real lm-evaluation-harness, beside our own scorers: ``make eval`` runs it.

Apart from the tests because the harness with all that it needs takes longer to install than they take to run.
"""

import json
import math
import sys
from pathlib import Path

from scoring.harness.metrics import DEFAULTS, KNOWN, Known
from scoring.harness.run import run_harness
from scoring.harness.task import HarnessTask
from scoring.runner import score_model
from scoring.score import higher_is_better
from scoring.settings import LmEvalSettings
from scoring.tasks import Task, parse_task

NOT_OURS = {"bypass", "acc_all", "likelihood"}
"""Metrics that measure nothing, one task alone, or end the harness with an error."""
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


def wrong_in_table() -> list[str]:
    """Where our table of metrics and the harness's registry differ."""
    import lm_eval.api.metrics  # noqa: F401  (fills the registry)
    from lm_eval.api import registry

    names = {function: name for name, function in registry.AGGREGATION_REGISTRY.items()}
    theirs = {
        name: Known(registry.is_higher_better(name), names[registry.get_metric_aggregation(name)])
        for name in registry.metric_registry
        if name not in NOT_OURS
    }
    wrong = [name for name in {*theirs, *KNOWN} if theirs.get(name) != KNOWN.get(name)]
    wrong += [name for name in KNOWN if higher_is_better(name) is not KNOWN[name].higher_is_better]
    defaults = {kind: tuple(registry.DEFAULT_METRIC_REGISTRY[kind]) for kind in DEFAULTS}
    return wrong + [kind for kind in DEFAULTS if defaults[kind] != DEFAULTS[kind]]


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
    wrong = wrong_in_table()
    sys.stdout.write(f"{len(KNOWN)} metrics, told wrong: {wrong or 'none'}\n")
    found = theirs["writing", "exact_match"].value
    return int(max(apart) > 1e-4 or bool(wrong) or not math.isfinite(found))


if __name__ == "__main__":
    sys.exit(main())
