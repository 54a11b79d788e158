"""`mergery search` by tasks of lm-evaluation-harness, of which a stand-in gives the numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.main import main
from merge.__main__ import main as merge
from scoring.settings import LmEvalSettings
from scoring.tasks import parse_task
from tests import tiny
from tests.scoring.harness.stand_in import rows_given, stand_in

STEP = {"method": "task_arithmetic", "scale": 1.0}
ROWS = [{"q": f"Is {at} even?", "a": at % 2} for at in range(8)]
CONFIG = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": "{{a}}",
}
OWN = {"name": "own", "kind": "lm_eval", "data": {"path": "rows.jsonl"}, "settings": {"config": CONFIG}}
ARC = {"name": "arc", "kind": "lm_eval", "settings": {"task": "arc_easy"}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.family(root, experts=2)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


def write(models: Path, name: str, evaluation_set: dict[str, Any], **search: Any) -> Path:
    order = {
        "recipe": {"base": "base", "sources": ["expert1", "expert2"], "steps": [STEP]},
        "search": {
            "method": "grid",
            "space": {"scale": {"at": "steps.task_arithmetic.scale", "values": [0.25, 0.5, 1.0, 1.5]}},
            "objectives": [{"set": evaluation_set["name"]}],
            **search,
        },
        "evaluate": {"sets": [evaluation_set]},
    }
    path = models / name
    path.write_text(yaml.safe_dump(order))
    return path


def test_a_task_of_one_s_own_leads_a_search_and_the_best_scores_so_when_it_is_merged(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = stand_in(tmp_path / "harness")
    monkeypatch.setattr("worker.measures.run_harness", harness)
    file = write(models, "own.yaml", OWN, halving={"begin": 0.5, "factor": 2})
    assert main(["search", str(file)]) == 0
    heard = capsys.readouterr()
    assert "written, one at a time: its set own is scored by lm-evaluation-harness" in heard.err
    found = json.loads((models / "own.search" / "search.json").read_text())
    assert found["failed"] == 0 and found["candidates"]["made"] == "disk"
    rows = rows_given(tmp_path / "harness")
    assert rows.count(4) == 4 and rows.count(8) == len(rows) - 4 == len(found["trials"]) - 4
    assert len({tuple(trial["values"]) for trial in found["trials"]}) > 3
    (models / "best.yaml").write_text(heard.out)
    assert merge(["run", str(models / "best.yaml"), str(tmp_path / "best")]) == 0
    body = (models / "rows.jsonl").read_bytes()
    task = parse_task("own", "lm_eval", body, file="rows", settings=LmEvalSettings(config=CONFIG))
    by = {score.metric: score.value for score in harness(tmp_path / "best", [task])}
    assert found["best"]["values"] == [by["acc"]]
    assert not (models / "own.search" / "candidate").exists()


@pytest.mark.parametrize(
    ("status", "metric", "said"),
    [
        (0, "acc_norm", "the set 'arc' does not measure 'acc_norm', but acc, f1: name one of these"),
        (3, "acc", "is not installed on this worker; install mergery[eval]"),
        (4, "acc", "is not installed on this worker, but another release"),
    ],
)
def test_what_would_befall_every_candidate_ends_the_search_at_the_first(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    metric: str,
    said: str,
) -> None:
    runs = list[str]()

    def counted(*wanted: Any, **how: Any) -> Any:
        runs.append("run")
        return stand_in(tmp_path / "harness", status)(*wanted, **how)

    monkeypatch.setattr("worker.measures.run_harness", counted)
    file = write(models, f"ends{status}.yaml", ARC, objectives=[{"set": "arc", "metric": metric}])
    assert main(["search", str(file)]) == 2
    assert said in capsys.readouterr().err and len(runs) == 1
    assert [path.name for path in (models / f"ends{status}.search").iterdir()] == ["trials.jsonl"]


def test_a_built_in_task_has_no_file_and_others_need_one(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worker.measures.run_harness", stand_in(tmp_path / "harness"))
    file = write(models, "arc.yaml", ARC, objectives=[{"set": "arc", "metric": "acc"}])
    assert main(["search", str(file)]) == 0
    uploaded = {"name": "texts", "kind": "perplexity", "data": {"dataset": "ds_1"}}
    assert main(["search", str(write(models, "texts.yaml", uploaded))]) == 2
    assert "the set 'texts' needs data.path" in capsys.readouterr().err
