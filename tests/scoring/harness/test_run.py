"""The harness's process: what it is told, what its numbers become, and how it ends badly.

A script stands in for Python here. ``make eval`` runs the same tasks through the real harness.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from scoring.errors import (
    HarnessFailed,
    HarnessMissing,
    NotCausal,
    ScoreNotFinite,
    ScoringStopped,
    SetInvalid,
)
from scoring.harness import child
from scoring.harness.child import LOOKS_AHEAD, OTHER, values_of
from scoring.harness.run import ROOT, run_harness
from scoring.harness.task import HARNESS
from scoring.runner import score_model
from scoring.score import Score, aggregate
from scoring.settings import LmEvalSettings
from scoring.tasks import parse_task
from tests.merge.learn import models
from tests.scoring.harness.test_config import ROW, parse


def script(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nset -e\ncp "$3" {folder}/order.json\nenv > {folder}/env\n{body}\n')
    path.chmod(0o755)
    return str(path)


def answered(folder: Path, metrics: dict[str, Any], **more: Any) -> str:
    found = {"t": {"t": {"metrics": metrics, "items": 2}, **more}}
    (folder / "answer.json").write_text(json.dumps(found))
    return script(folder, f'cp {folder}/answer.json "$4"')


def scores(folder: Path, python: str, **options: Any) -> list[Score]:
    return run_harness(folder, [parse([ROW, ROW])], python=python, **options)


def test_the_process_gets_the_items_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MERGERY_SECRET_KEY", "secret")
    scores(
        tmp_path, answered(tmp_path, {"acc": {"value": 0.5, "each": [1.0, 0.0]}}), hub_endpoint="http://hub"
    )
    order = json.loads((tmp_path / "order.json").read_text())
    (task,) = order["tasks"]
    assert task["rows"] == [ROW, ROW] and task["config"]["doc_to_text"] == "Q: {{q}}" and task["task"] is None
    said = (tmp_path / "env").read_text()
    assert "HF_EVALUATE_OFFLINE=1" in said
    assert "secret" not in said and "HF_HUB_OFFLINE=1" in said and "HF_ENDPOINT" not in said


def test_a_model_that_looks_ahead_is_refused_by_name(tmp_path: Path) -> None:
    """The harness would score it on texts that it can read."""
    folder = models.make(tmp_path / "m", "xlnet")
    with pytest.raises(NotCausal) as refused:
        child.score({"folder": str(folder), "device": "cpu", "batch_size": 1, "tasks": []})
    with pytest.raises(NotCausal, match=r"m is a XLNetLMHeadModel that sees") as told:
        scores(tmp_path, script(tmp_path, f"echo '{refused.value}' >&2; exit {LOOKS_AHEAD}"))
    assert str(told.value) == str(refused.value)


def test_a_built_in_task_may_use_the_network(tmp_path: Path) -> None:
    task = parse_task("t", "lm_eval", b"", file="t", settings=LmEvalSettings(task="arc_easy"))
    python = answered(tmp_path, {"acc": {"value": 0.5, "each": []}})
    (score,) = run_harness(tmp_path, [task], python=python, hub_endpoint="http://hub")  # type: ignore[list-item]
    said = (tmp_path / "env").read_text()
    assert "HF_ENDPOINT=http://hub" in said and "HF_HUB_OFFLINE" not in said
    assert (score.value, score.stderr, score.n, score.per_example) == (0.5, None, 2, None)


def test_numbers_come_back_with_errors_and_items(tmp_path: Path) -> None:
    found = {
        "acc": {"value": 0.5, "each": [1.0, 0.0]},
        "bits_per_byte": {"value": 1.5 / 0.6931471805599453, "each": [[-10.0, 10.0], [-20.0, 10.0]]},
        "word_perplexity": {"value": 2.718281828459045**1.5, "each": [[-10.0, 10.0], [-20.0, 10.0]]},
        "f1": {"value": 0.4, "each": [[1.0, 1.0], [0.0, 1.0]]},
        "odd": {"value": 0.9, "each": [1.0, 0.0]},
    }
    by = {score.metric: score for score in scores(tmp_path, answered(tmp_path, found))}
    assert by["acc"].per_example == (1.0, 0.0) and by["acc"].stderr == pytest.approx(0.5)
    for name in ("bits_per_byte", "word_perplexity"):
        score = by[name]
        assert score.stderr and not score.higher_is_better
        assert aggregate(name, score.per_example or (), score.weights) == pytest.approx(score.value)
    assert by["f1"].per_example is None and by["odd"].per_example is None


def test_a_number_that_is_none_is_an_error_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScoreNotFinite, match="f1"):
        scores(tmp_path, answered(tmp_path, {"f1": {"value": float("nan"), "each": []}}))


def test_subtasks_are_told_apart(tmp_path: Path) -> None:
    more = {"metrics": {"acc": {"value": 1.0, "each": []}}, "items": 3}
    found = scores(tmp_path, answered(tmp_path, {"acc": {"value": 0.5, "each": []}}, other=more))
    assert {score.metric: score.value for score in found} == {"t:acc": 0.5, "other:acc": 1.0}


def test_a_metric_behind_several_filters_comes_with_their_names(tmp_path: Path) -> None:
    def sample(place: int, kind: str, value: float) -> dict[str, Any]:
        return {"doc_id": place, "filter": kind, "exact_match": value, "length": 3}

    filters = {"strict": (0.0, 1.0), "loose": (1.0, 1.0)}
    samples = [sample(at, kind, value) for kind, both in filters.items() for at, value in enumerate(both)]
    results = {
        "alias": "t",
        "exact_match,strict": 0.5,
        "exact_match_stderr,strict": 0.5,
        "exact_match,loose": 1.0,
        "length,strict": 3.0,
    }
    found = values_of({"results": {"t": results}, "samples": {"t": samples}})
    by = {score.metric: score for score in scores(tmp_path, answered(tmp_path, found["t"]["metrics"]))}
    assert {name: score.value for name, score in by.items()} == {
        "exact_match,strict": 0.5, "exact_match,loose": 1.0, "length": 3.0,
    }  # fmt: skip
    assert by["exact_match,strict"].per_example == (0.0, 1.0) and by["exact_match,loose"].n == 2


def test_without_the_extra_the_sentence_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(HarnessMissing, match=r"mergery\[eval\]"):
        scores(tmp_path, script(tmp_path, "exit 3"))


def test_another_release_than_that_whose_scores_are_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        HarnessMissing, match=rf"{HARNESS} is not installed.*another release.*mergery\[eval\]"
    ):
        scores(tmp_path, script(tmp_path, "exit 4"))
    assert json.loads((tmp_path / "order.json").read_text())["harness"] == HARNESS


def test_the_process_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    started = tmp_path / "started"
    waits = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n"
    (tmp_path / "lm_eval.py").write_text(waits)
    code = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'scoring.harness.child', 'order.json', 'result.json']\n"
        "print(subprocess.Popen(command).pid, flush=True)\ntime.sleep(60)"
    )
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    worker = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | path, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    child = psutil.Process(int(worker.stdout.readline()))
    deadline = time.monotonic() + 20
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    with suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                child.kill()
                raise AssertionError("the harness outlived its worker")
            time.sleep(0.02)


def test_the_process_looks_which_release_is_there_before_it_scores(tmp_path: Path) -> None:
    told = tmp_path / "lm_eval-0.4.99.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.99\n")
    (tmp_path / "lm_eval.py").write_text("")
    (tmp_path / "order.json").write_text(json.dumps({"harness": HARNESS}))
    command = [sys.executable, "-m", "scoring.harness.child", "order.json", "result.json"]
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    assert subprocess.run(command, cwd=tmp_path, env=os.environ | path, check=False).returncode == OTHER
    assert not (tmp_path / "result.json").exists()


def test_what_the_harness_said_last_is_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessFailed, match="AssertionError: no context"):
        scores(tmp_path, script(tmp_path, "echo first; echo 'AssertionError: no context' >&2; exit 1"))
    with pytest.raises(HarnessFailed, match="no number"):
        scores(tmp_path, answered(tmp_path, {}))


def test_a_stop_ends_the_process(tmp_path: Path) -> None:
    began = time.monotonic()
    python = script(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(ScoringStopped):
        scores(
            tmp_path,
            python,
            should_stop=lambda: (tmp_path / "pid").exists() and time.monotonic() > began + 0.3,
        )
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_our_own_scorers_refuse_such_a_set_by_name(model: Path) -> None:
    with pytest.raises(SetInvalid, match=r"scoring\.harness\.run"):
        score_model(model, [parse([ROW])])
