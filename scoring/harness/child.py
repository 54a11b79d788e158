"""The process in which lm-evaluation-harness runs: an order comes as a JSON file, results go to another.

``python -m scoring.harness.child ORDER RESULT``. An order is a model and tasks to score it on, or ``names``
of built-in tasks of which some may not be there. Nothing of a task runs as code: ``scoring.harness.config``.
"""

import ctypes
import json
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scoring.errors import NotCausal

MISSING, OTHER, LOOKS_AHEAD = 3, 4, 5
"""Exit status where the harness is not installed, or another release of it than is ordered, and where the
model sees what it is to predict.
"""
PARENT_DIED = 1
"""``PR_SET_PDEATHSIG`` of Linux' prctl."""


def main(order: Path, result: Path) -> int:
    """Scores one model on the tasks of an order."""
    end_with_parent()
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        return MISSING
    told = json.loads(order.read_bytes())
    if version("lm_eval") != told["harness"]:
        return OTHER
    try:
        answer = unknown(told["names"]) if "names" in told else score(told)
    except NotCausal as error:
        sys.stderr.write(f"\n{error}\n")
        return LOOKS_AHEAD
    result.write_text(json.dumps(answer), encoding="utf-8")
    return 0


def end_with_parent() -> None:
    """Has the kernel end this process when the worker is killed, which cannot do it then: it would keep the
    device for hours, beside the next attempt. Does nothing where there is no Linux.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)


def unknown(names: Sequence[str]) -> list[str]:
    """Those of the names that no built-in task, group or tag has."""
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    return [name for name in names if name not in known]


def score(order: Mapping[str, Any]) -> dict[str, Any]:
    """Values of every metric, item by item, by task and subtask."""
    from scoring.model import load
    from scoring.runner import require_blind

    loaded = load(Path(order["folder"]), device=order["device"])
    if not loaded.model.config.is_encoder_decoder:  # the harness has these read one text and write another
        require_blind(loaded)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

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
        found[task["name"]] = values_of(answer)
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


def values_of(answer: Any) -> dict[str, Any]:
    """For each subtask: what it got by each metric, and what each item got. A metric that is taken behind
    several filters comes with the filter's name.
    """
    found: dict[str, Any] = {}
    for name, results in answer["results"].items():
        samples = answer["samples"].get(name, [])
        parted = {
            key: (*key.split(",", 1), value) for key, value in results.items() if _is_metric(key, value)
        }
        filters = Counter(metric for metric, _, _ in parted.values())
        metrics = {}
        for key, (metric, kind, value) in parted.items():
            each = [sample[metric] for sample in samples if metric in sample and kind == sample["filter"]]
            shown = metric if filters[metric] == 1 else key
            metrics[shown] = {"value": float(value), "each": [_plain(one) for one in each]}
        found[name] = {"metrics": metrics, "items": len({sample["doc_id"] for sample in samples})}
    return found


def _is_metric(key: str, value: Any) -> bool:
    metric, _, kind = key.partition(",")
    return bool(kind) and not metric.endswith("_stderr") and isinstance(value, int | float)


def _plain(value: Any) -> Any:
    """A number, or a pair of a sum of log-likelihoods and what it is divided by; else nothing."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
        return [float(v) for v in value]
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
