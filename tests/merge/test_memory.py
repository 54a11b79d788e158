"""How much memory a merge takes, measured from outside what it believes of itself."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from merge.checkpoint.layout import plan_shards
from merge.contract.rows import ColumnNumbers
from merge.methods.elementwise.widen import RowShares
from merge.report import ShardDone
from merge.run import run
from tests.merge import exact, stages
from tests.merge.references import planned

MOST = 512 << 20
MODELS = 9
WATCHED = """
import json, sys, threading
from pathlib import Path
from merge.local import index_models, model_folders
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.005):
        peaks.append(anonymous())

folder, document = Path(sys.argv[1]), json.loads(sys.argv[2])
budget = int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 30
recipe = recipe_from(document)
plan = make_plan(recipe, index_models(recipe, folder), budget=budget)
idle, peaks, done = anonymous(), [0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
run(plan, model_folders(recipe, folder), folder / "out", budget_bytes=budget, threads=2)
done.set()
watcher.join()
print(json.dumps({"peak": max(peaks) - idle, "seen": len(peaks)}))
"""


def sparse(folder: Path, entries: int) -> None:
    """A model of two bf16 tensors of zeros that take no room on the disk."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    rows = entries // 2 // 4096
    (shard,) = plan_shards([(f"{n}.weight", "BF16", (rows, 4096)) for n in "ab"], 1 << 40)
    with (folder / shard.file).open("wb") as file:
        file.write(shard.header_bytes)
        file.truncate(shard.size)


@pytest.mark.parametrize(
    ("compiled", "steps", "entries"),
    [
        (True, [{"method": "linear"}], 64 << 20),
        (True, [{"method": "dare"}, {"method": "ties", "density": 0.5, "scope": "global"}], 48 << 20),
        (False, [{"method": "task_arithmetic"}], 48 << 20),
    ],
    ids=["linear compiled", "dare, ties compiled", "task arithmetic eager"],
)
def test_no_model_and_no_tensor_is_ever_held(
    tmp_path: Path, compiled: bool, steps: list[dict[str, object]], entries: int
) -> None:
    """One tensor of every model, as it is stored, would already break the limit."""
    assert MODELS * entries // 2 * 2 > 0.8 * MOST
    names = ["base", *(f"s{number}" for number in range(MODELS - 1))]
    for name in names:
        sparse(tmp_path / name, entries)
    document = {"base": "base", "sources": [{"id": n, "model": n} for n in names[1:]], "steps": steps}
    environment = dict(os.environ) if compiled else {**os.environ, "MERGERY_KERNELS": "off"}
    command = [sys.executable, "-c", WATCHED, str(tmp_path), json.dumps(document)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    told = json.loads(done.stdout)
    assert told["seen"] > 10
    assert told["peak"] < MOST


@pytest.mark.parametrize("staged", [False, True], ids=["merged", "given by a stage"])
def test_what_was_measured_of_a_tensor_is_let_go_when_it_is_written(tmp_path: Path, staged: bool) -> None:
    """WIDEN keeps a number for every column and source; a large model has thousands of tensors."""
    folders = exact.family(tmp_path / "family", shards=2)
    plan = planned(folders, "abc", [{"method": "widen"}])
    if staged:
        stage = {"base": "base", "sources": ["a", "b"], "steps": ["widen"]}
        document = {"stages": {"one": stage}, "sources": ["stage:one", "c"], "steps": ["linear"]}
        plan = stages.planned(document, folders)
        folders = stages.at(plan.recipe, folders)
    held: list[int] = []

    def look(_: ShardDone) -> None:
        held.append(sum(isinstance(each, ColumnNumbers | RowShares) for each in gc.get_objects()))

    run(plan, folders, tmp_path / "out", budget_bytes=1 << 30, threads=2, on_shard=look)
    assert held and not any(held)
