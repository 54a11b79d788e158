"""Scores a model folder with lm-evaluation-harness, in a process of its own that knows no secrets."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scoring.errors import HarnessFailed, HarnessMissing, ScoreNotFinite, ScoringStopped
from scoring.harness.child import MISSING
from scoring.harness.task import HarnessTask
from scoring.score import Score, aggregate, mean_stderr, ratio_stderr

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE", "LANG")
NO_METRICS = {"HF_EVALUATE_OFFLINE": "1"}
"""Metrics that are not in its registry would be programs from the network."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
PAUSE_SECONDS = 0.1
BATCH = 8
PERPLEXITIES = ("word_perplexity", "byte_perplexity")
ROOT = Path(__file__).resolve().parents[2]


def run_harness(
    folder: Path,
    tasks: Sequence[HarnessTask],
    *,
    device: str = "cpu",
    hub_endpoint: str | None = None,
    python: str = sys.executable,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Score]:
    """Scores of one model on every task, with the values of every item where the harness tells them.

    Only a built-in task may use the network, to fetch its data. Raises ``HarnessMissing``, ``HarnessFailed``
    or ``ScoringStopped``, and leaves no process behind.
    """
    with tempfile.TemporaryDirectory(prefix="harness-") as made:
        here = Path(made)
        order = {
            "folder": str(folder.resolve()),
            "device": device,
            "batch_size": BATCH,
            "tasks": list(map(_told, tasks)),
        }
        (here / "order.json").write_text(json.dumps(order), encoding="utf-8")
        online = any(task.config is None for task in tasks)
        environment = _environment(here, hub_endpoint if online else None, online)
        _wait(here, python, environment, should_stop)
        found = json.loads((here / "result.json").read_bytes())
    return [score for task in tasks for score in _scores(task, found[task.name])]


def _told(task: HarnessTask) -> dict[str, Any]:
    config = task.config
    return {
        "name": task.name,
        "task": task.settings.task,
        "config": None if config is None else config.plain(),
        "rows": [dict(row) for row in task.rows],
        "limit": task.limit,
        "num_fewshot": task.settings.num_fewshot,
    }


def _environment(here: Path, endpoint: str | None, online: bool) -> dict[str, str]:
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    kept |= {
        "HOME": str(here),
        "HF_HOME": str(here / "hf"),
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
    kept |= NO_METRICS
    if endpoint is not None:
        kept["HF_ENDPOINT"] = endpoint
    return kept if online else kept | OFFLINE


def _wait(here: Path, python: str, environment: Mapping[str, str], should_stop: Callable[[], bool]) -> None:
    command = [python, "-m", "scoring.harness.child", str(here / "order.json"), str(here / "result.json")]
    with (here / "said").open("wb") as said:
        child = subprocess.Popen(  # noqa: S603
            command, cwd=here, env=dict(environment), stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            while child.poll() is None:
                if should_stop():
                    raise ScoringStopped("lm-evaluation-harness was asked to stop")
                time.sleep(PAUSE_SECONDS)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
    if child.returncode == MISSING:
        raise HarnessMissing(
            "lm-evaluation-harness is not installed on this worker; install mergery[eval], or use the kinds "
            "of sets that need no extra"
        )
    if child.returncode != 0 or not (here / "result.json").exists():
        lines = (here / "said").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise HarnessFailed(f"lm-evaluation-harness failed: {(lines or ['it said nothing'])[-1][:300]}")


def _scores(task: HarnessTask, found: Mapping[str, Any]) -> list[Score]:
    scores = []
    for name, told in found.items():
        for metric, values in told["metrics"].items():
            shown = metric if len(found) == 1 else f"{name}:{metric}"
            scores.append(_score(task.name, shown, metric, values, told["items"]))
    if not scores:
        raise HarnessFailed(f"lm-evaluation-harness gave no number for set {task.name!r}")
    return scores


def _score(task: str, shown: str, metric: str, values: Mapping[str, Any], items: int) -> Score:
    each, value = values["each"], values["value"]
    if not math.isfinite(value):
        raise ScoreNotFinite(
            f"{shown} of set {task!r} is no finite number; lm-evaluation-harness said {value}"
        )
    if each and all(isinstance(one, float) for one in each):
        if math.isclose(aggregate(metric, each, None), value, rel_tol=1e-6, abs_tol=1e-9):
            return Score(task, shown, value, mean_stderr(each), len(each), tuple(each))
    elif each and all(isinstance(one, list) for one in each):
        nats, sizes = [-one[0] for one in each], [one[1] for one in each]
        scale = math.log(2) if metric == "bits_per_byte" else 1.0
        error = ratio_stderr([one / scale for one in nats], sizes)
        rates = [one / scale / max(size, 1.0) for one, size in zip(nats, sizes, strict=True)]
        if metric in PERPLEXITIES:
            rates = [math.exp(min(rate, 700.0)) for rate in rates]
            error = None if error is None else error * value
        return Score(task, shown, value, error, len(each), tuple(rates), tuple(sizes))
    return Score(task, shown, value, None, items)
