"""What is told before anything starts where the harness is not there."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from scoring.errors import HarnessFailed, HarnessMissing
from scoring.harness.installed import require_installed
from scoring.harness.run import require_tasks
from scoring.harness.task import HARNESS
from scoring.settings import LmEvalSettings
from scoring.tasks import parse_task

OWN = parse_task("own", "perplexity", b'{"text": "to be"}\n', file="own.jsonl")
THEIRS = parse_task("arc", "lm_eval", b"", file="arc", settings=LmEvalSettings(task="arc_easy"))


def absent(_: str) -> str:
    raise PackageNotFoundError("lm_eval")


def test_a_set_of_the_harness_needs_the_release_whose_scores_are_kept() -> None:
    require_installed([OWN, THEIRS], lambda _: HARNESS)
    with pytest.raises(HarnessMissing, match=r"not installed on this worker; install mergery\[eval\]"):
        require_installed([OWN, THEIRS], absent)
    with pytest.raises(HarnessMissing, match="but another release"):
        require_installed([THEIRS], lambda _: "0.4.0")


def test_a_built_in_task_is_asked_for_by_name_before_anything_is_fetched(tmp_path: Path) -> None:
    def process(answer: str) -> str:
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\ncp "$3" {tmp_path}/order.json\necho \'{answer}\' > "$4"\n')
        path.chmod(0o755)
        return str(path)

    tasks, asked = [OWN, THEIRS, THEIRS], tmp_path / "order.json"
    require_tasks(tasks, python=process("[]"), require=lambda _: None)
    assert json.loads(asked.read_text()) == {"harness": HARNESS, "names": ["arc_easy"]}
    with pytest.raises(HarnessFailed, match="has no task 'arc_easy'"):
        require_tasks(tasks, python=process('["arc_easy"]'), require=lambda _: None)
    asked.unlink()
    require_tasks([OWN], python=process("[]"))
    assert not asked.exists()


def test_sets_of_our_own_need_none() -> None:
    require_installed([OWN], absent)
