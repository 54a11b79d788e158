"""Scores a model folder with lm-evaluation-harness, in a process of its own that knows no secrets."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scoring.errors import HarnessFailed, NotCausal, ScoreNotFinite, ScoringStopped
from scoring.harness.child import LOOKS_AHEAD, MISSING, OTHER
from scoring.harness.installed import missing, require_installed
from scoring.harness.metrics import WEIGHTED, bare
from scoring.harness.task import HARNESS, HarnessTask
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

    Only a built-in task may use the network, to fetch its data. Raises ``HarnessMissing``, ``HarnessFailed``,
    ``NotCausal`` or ``ScoringStopped``, and leaves no process behind.
    """
    order = {
        "folder": str(folder.resolve()),
        "device": device,
        "batch_size": BATCH,
        "tasks": list(map(_told, tasks)),
    }
    online = any(task.config is None for task in tasks)
    found = _answer(order, python, should_stop, online=online, endpoint=hub_endpoint)
    return [score for task in tasks for score in _scores(task, found[task.name])]


def require_tasks(
    tasks: Iterable[object],
    *,
    python: str = sys.executable,
    should_stop: Callable[[], bool] = lambda: False,
    require: Callable[[Iterable[object]], None] = require_installed,
) -> None:
    """Raises ``HarnessMissing`` where one of the tasks is for a harness that is not installed here, and
    ``HarnessFailed`` where it has no built-in task of that name, which its process is asked (some seconds).
    """
    others = [each for each in tasks if isinstance(each, HarnessTask)]
    require(others)
    names = list(dict.fromkeys(each.settings.task for each in others if each.settings.task is not None))
    unknown = _answer({"names": names}, python, should_stop) if names else []
    if unknown:
        raise HarnessFailed(
            f"lm-evaluation-harness {HARNESS} has no task {unknown[0]!r}; `lm-eval ls tasks` lists all it has"
        )


def _answer(
    order: Mapping[str, Any],
    python: str,
    should_stop: Callable[[], bool],
    *,
    online: bool = False,
    endpoint: str | None = None,
) -> Any:
    """What the harness's process answers an order."""
    with tempfile.TemporaryDirectory(prefix="harness-") as made:
        here = Path(made)
        text = json.dumps({"harness": HARNESS, **order})
        (here / "order.json").write_text(text, encoding="utf-8")
        _wait(here, python, _environment(here, endpoint if online else None, online), should_stop)
        return json.loads((here / "result.json").read_bytes())


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
    if child.returncode in (MISSING, OTHER):
        raise missing(other=child.returncode == OTHER)
    if child.returncode != 0 or not (here / "result.json").exists():
        lines = (here / "said").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = (lines or ["it said nothing"])[-1][:300]
        if child.returncode == LOOKS_AHEAD:
            raise NotCausal(last)
        raise HarnessFailed(f"lm-evaluation-harness failed: {last}")


def _scores(task: HarnessTask, found: Mapping[str, Any]) -> list[Score]:
    scores = []
    for name, told in found.items():
        for metric, values in told["metrics"].items():
            shown = metric if len(found) == 1 else f"{name}:{metric}"
            scores.append(_score(task.name, shown, bare(metric), values, told["items"]))
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
    elif metric in WEIGHTED and each and all(isinstance(one, list) for one in each):
        nats, sizes = [-one[0] for one in each], [one[1] for one in each]
        scale = math.log(2) if metric == "bits_per_byte" else 1.0
        error = ratio_stderr([one / scale for one in nats], sizes)
        rates = [one / scale / max(size, 1.0) for one, size in zip(nats, sizes, strict=True)]
        if metric in PERPLEXITIES:
            rates = [math.exp(min(rate, 700.0)) for rate in rates]
            error = None if error is None else error * value
        return Score(task, shown, value, error, len(each), tuple(rates), tuple(sizes))
    return Score(task, shown, value, None, items)
