"""What tests of merge jobs share: where results go, what the engine alone makes, a Hub that is slow."""

import json
import threading
from typing import Any

from hub.folder_faults import Fault
from merge.checkpoint.index import index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run as run_merge
from tests.worker.conftest import Floor

REPO = "team/merged"
PUSHED = {"output": {"repo": REPO}}


def undisturbed(floor: Floor, recipe: dict[str, Any]) -> dict[str, bytes]:
    """Weights, index and config that the engine alone makes of the same recipe."""
    read = recipe_from(recipe)
    root = floor.hub.store.root
    folders = {"base": root / read.base} if read.base else {}
    folders |= {source.id: root / source.model for source in read.sources}
    plan = make_plan(read, {key: index_folder(path, key) for key, path in folders.items()}, budget=1 << 30)
    out = floor.folder / "undisturbed"
    run_merge(plan, folders, out, budget_bytes=1 << 30, threads=1)
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "mergery.json"}


def commits(floor: Floor, repo: str = REPO) -> int:
    return floor.hub.stats.requests["commit"]


def start(floor: Floor, job_id: str) -> threading.Thread:
    thread = threading.Thread(target=floor.run, args=(job_id,))
    thread.start()
    return thread


def slow_weights(floor: Floor, seconds: float = 1.0) -> None:
    """The second half of every model comes late, so that the merge waits in its middle."""
    path = "model-00002-of-00002.safetensors"
    floor.hub.faults.add("get", Fault(delay=seconds), path=path, times=1000)


TEXTS = "".join(
    json.dumps({"text": f"the number {number} follows {number - 1}"}) + "\n" for number in range(8)
)


def scored(floor: Floor, **order: Any) -> dict[str, Any]:
    (floor.hub.store.root / "team" / "texts.jsonl").write_text(TEXTS)
    sets = [{"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}]
    return {"evaluate": {"sets": sets, **order}, **PUSHED}
