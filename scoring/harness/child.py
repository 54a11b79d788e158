"""The process in which lm-evaluation-harness runs: an order comes as a JSON file, results go to another.

``python -m scoring.harness.child ORDER RESULT``. Nothing of a task runs as code: ``scoring.harness.config``.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MISSING = 3
"""Exit status where the harness is not installed."""


def main(order: Path, result: Path) -> int:
    """Scores one model on the tasks of an order."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        return MISSING
    told = json.loads(order.read_bytes())
    result.write_text(json.dumps(score(told)), encoding="utf-8")
    return 0


def score(order: Mapping[str, Any]) -> dict[str, Any]:
    """Values of every metric, item by item, by task and subtask."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from scoring.model import load

    loaded = load(Path(order["folder"]), device=order["device"])
    model = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=order["batch_size"],
        device=order["device"],
    )
    found = {}
    for task in order["tasks"]:
        own = task["config"] is not None
        answer = simple_evaluate(
            model=model,
            tasks=[_local(task) if own else task["task"]],
            num_fewshot=task["num_fewshot"],
            limit=task["limit"],
            task_manager=TaskManager(include_defaults=not own),
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=False,
        )
        found[task["name"]] = _values(answer)
    return found


def _local(task: Mapping[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from lm_eval.api.registry import metric_registry

    unknown = [
        each["metric"] for each in task["config"]["metric_list"] if each["metric"] not in metric_registry
    ]
    if unknown:
        raise SystemExit(f"the installed harness has no metric {unknown[0]!r}")
    rows = task["rows"]
    return {
        **task["config"],
        "task": task["name"],
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
    }


def _values(answer: Any) -> dict[str, Any]:
    """For each subtask: what it got by each metric, and what each item got."""
    found: dict[str, Any] = {}
    for name, results in answer["results"].items():
        samples = answer["samples"].get(name, [])
        metrics = {}
        for key, value in results.items():
            metric, _, kind = key.partition(",")
            if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
                each = [sample[metric] for sample in samples if metric in sample and kind == sample["filter"]]
                metrics[metric] = {"value": float(value), "each": [_plain(one) for one in each]}
        found[name] = {"metrics": metrics, "items": len({sample["doc_id"] for sample in samples})}
    return found


def _plain(value: Any) -> Any:
    """A number, or a pair of a sum of log-likelihoods and what it is divided by; else nothing."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
        return [float(v) for v in value]
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
