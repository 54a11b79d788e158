"""AIM in the compiled loops: in one pass with the merge before it, and the bytes of the plain code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge.contract.method import get
from merge.run import run
from merge.running.fused import compiler, loops
from tests.merge import informed
from tests.merge.references import planned, tensors_digest

GIB = 1 << 30
TASK = {"method": "task_arithmetic", "scale": 0.4}
pytestmark = pytest.mark.usefixtures("made")


@pytest.mark.parametrize(
    "steps",
    [
        [TASK, {"method": "aim"}],
        [TASK, {"method": "aim", "omega": 0.0, "unmeasured": "base", "tied_head": "relaxed"}],
        [TASK, {"method": "aim", "control": "uniform"}],
        [{"method": "ties", "density": 0.3}, {"method": "aim"}],
        [{"method": "dare", "density": 0.5}, {"method": "linear"}, {"method": "aim"}],
    ],
    ids=["fused", "unmeasured", "uniform", "ties", "dare"],
)
def test_compiled_and_plain_code_give_the_same_bytes(
    folders: Mapping[str, Path],
    tmp_path: Path,
    made: list[loops.Loops],
    monkeypatch: pytest.MonkeyPatch,
    steps: list[dict[str, Any]],
) -> None:
    plan = planned(folders, "abc", steps)
    known = informed.folders_for(plan, folders["base"].parent)
    run(plan, folders, tmp_path / "quick", budget_bytes=GIB, threads=2, statistics=known)
    assert made[-1].made > 0 and not made[-1].reasons
    monkeypatch.setenv(compiler.FOLDER_VARIABLE, "off")
    monkeypatch.setattr(loops, "_COMPILER", compiler.Compiler())
    run(plan, folders, tmp_path / "plain", budget_bytes=GIB, threads=2, statistics=known)
    assert made[-1].made == 0
    assert tensors_digest(tmp_path / "quick") == tensors_digest(tmp_path / "plain")


def test_task_arithmetic_with_aim_takes_one_pass_over_the_weights(
    folders: Mapping[str, Path], tmp_path: Path, made: list[loops.Loops]
) -> None:
    plan = planned(folders, "abc", [TASK, {"method": "aim"}])
    known = informed.folders_for(plan, folders["base"].parent)
    report = run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=1, statistics=known)
    plain = planned(folders, "abc", [TASK])
    alone = run(plain, folders, tmp_path / "alone", budget_bytes=GIB, threads=1)
    assert report.bytes_read == alone.bytes_read, "no weight is read a second time"
    assert get("aim").granularity == "element" and not made[0].reasons
