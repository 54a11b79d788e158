"""A merge job whose recipe has stages, against a folder Hub."""

import json
from typing import Any

from sqlalchemy import select

from db.models.job import JobInput
from merge.checkpoint.index import index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.recipe.stages import leaves
from merge.run import run as run_merge
from tests.worker.conftest import Floor

REPO = "team/staged"
RECIPE: dict[str, Any] = {
    "stages": {
        "mean": {"sources": ["team/expert1", "team/expert2"], "steps": ["linear"]},
        "ranked": {
            "base": "team/base",
            "sources": ["stage:mean", "team/expert1"],
            "steps": [{"method": "ties", "scope": "global"}],
        },
    },
    "base": "stage:ranked",
    "sources": [{"id": "a", "model": "stage:mean"}],
    "steps": ["task_arithmetic"],
}


def engine(floor: Floor) -> dict[str, bytes]:
    """What the engine alone makes of the recipe."""
    recipe = recipe_from(RECIPE)
    folders = {each.role: floor.hub.store.root / each.name for each in leaves(recipe)}
    plan = make_plan(
        recipe, {role: index_folder(path, role) for role, path in folders.items()}, budget=1 << 30
    )
    out = floor.folder / "engine"
    run_merge(plan, folders, out, budget_bytes=1 << 30, threads=1)
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "mergery.json"}


def test_every_model_of_every_stage_is_pinned_fetched_once_and_named(floor: Floor) -> None:
    job = floor.run(floor.order(RECIPE, output={"repo": REPO}))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    for name, content in engine(floor).items():
        assert floor.read(REPO, name) == content, name
    manifest = json.loads(floor.read(REPO, "mergery.json"))
    roles = {"mean.m0", "mean.m1", "ranked.base", "ranked.m1"}
    assert manifest["inputs"].keys() == roles
    assert manifest["methods"].keys() == {"linear", "ties", "task_arithmetic"}
    assert "@" in manifest["recipe"]["stages"]["mean"]["sources"][0]["model"]
    assert manifest["recipe"]["base"] == "stage:ranked"
    card = floor.read(REPO, "README.md").decode()
    assert "base_model:\n- team/expert1\n- team/expert2\n- team/base\n" in card
    with floor.sessions() as session:
        assert {row.role for row in session.scalars(select(JobInput))} == roles
    plan = job.plan or {}
    assert [stage["written"] for stage in plan["stages"].values()] == [False, True]
    sizes = {each["repo"]: each["size_bytes"] for each in plan["inputs"]}
    assert plan["estimate"]["download_bytes"] == sum(sizes.values())
