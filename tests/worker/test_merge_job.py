"""One merge job from its row to its result, against a folder Hub."""

import json
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select, text

from db.models.job import JobInput
from hub.folder_faults import Fault
from merge.checkpoint.index import index_folder
from tests import tiny
from tests.worker.conftest import TOKEN, Floor, family_recipe
from tests.worker.merging import PUSHED, REPO, commits, undisturbed
from worker.run_job import run_job


def test_from_names_to_a_pushed_model_with_the_bytes_of_the_engine(floor: Floor) -> None:
    job = floor.run(floor.order(**PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    made = undisturbed(floor, family_recipe())
    assert len([name for name in made if name.endswith(".safetensors")]) > 3
    for name, content in made.items():
        assert floor.read(REPO, name) == content, name
    assert job.result is not None
    assert job.result["commit"] == floor.hub.head(REPO) and job.result["checked"] is True
    phases = [event.data["phase"] for event in floor.events(job.id) if event.type == "merge.phase"]
    assert phases == ["downloading", "merging", "evaluating", "uploading", "finalising"]
    manifest = json.loads(floor.read(REPO, "mergery.json"))
    assert manifest["job_id"] == job.id and "@" in manifest["recipe"]["base"]
    card = floor.read(REPO, "README.md").decode()
    assert "base_model:\n- team/base" in card and "base_model_relation: merge" in card
    with floor.sessions() as session:
        shas = {row.role: row.sha for row in session.scalars(select(JobInput))}
    assert shas == {
        "base": floor.hub.head("team/base"),
        **{k: floor.hub.head(f"team/expert{n}") for k, n in (("a", 1), ("b", 2))},
    }
    assert not list((floor.folder / "data" / "scratch" / "jobs").iterdir())


def test_without_a_repository_the_result_stays_as_an_artifact(floor: Floor) -> None:
    job = floor.run(floor.order())
    assert job.state == "succeeded" and job.result is not None
    folder = Path(job.result["folder"])
    assert folder == floor.folder / "data" / "artifacts" / job.id
    for name, content in undisturbed(floor, family_recipe()).items():
        assert (folder / name).read_bytes() == content
    assert (folder / "README.md").exists()
    assert commits(floor) == 0


def test_folders_inside_the_roots_are_read_in_place(floor: Floor) -> None:
    recipe = family_recipe(
        base="./base", sources=[{"id": "a", "model": "./expert1"}, {"id": "b", "model": "./expert2"}]
    )
    job = floor.run(floor.order(recipe))
    assert job.state == "succeeded", job.error_detail
    assert floor.hub.stats.bytes["weight"] == 0


def test_an_adapter_is_fetched_and_applied(floor: Floor) -> None:
    shapes = {
        name: info.shape
        for name, info in index_folder(floor.hub.store.root / "team/base", "b").tensors.items()
    }
    chosen = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if "q_proj" in name}
    tiny.lora(floor.hub.store.root / "team/lora", chosen)
    recipe = family_recipe(
        base=None,
        sources=[
            {"id": "a", "model": "team/base", "adapter": "team/lora"},
            {"id": "b", "model": "team/expert1"},
        ],
        steps=[{"method": "linear"}],
    )
    job = floor.run(floor.order(recipe, **PUSHED))
    assert job.state == "succeeded", job.error_detail
    plain = {**recipe, "sources": [{"id": "a", "model": "team/base"}, {"id": "b", "model": "team/expert1"}]}
    changed = {
        name for name, content in undisturbed(floor, plain).items() if floor.read(REPO, name) != content
    }
    weights = changed - {"merge_report.json", "merge_report.html"}
    assert weights and all(name.endswith(".safetensors") for name in weights)


def test_what_cannot_work_is_refused_before_a_byte_of_weights_is_fetched(floor: Floor) -> None:
    tiny.llama(floor.hub.store.root / "team/wide", hidden=48)
    recipe = family_recipe(sources=[{"id": "a", "model": "team/wide"}, {"id": "b", "model": "team/expert2"}])
    job = floor.run(floor.order(recipe, **PUSHED))
    assert (job.state, job.error_code) == ("failed", "plan_refused")
    assert job.error_findings is not None
    assert any(finding["code"] == "shape_mismatch" for finding in job.error_findings)
    assert floor.hub.stats.bytes["weight"] == 0 and floor.hub.stats.requests["create"] == 0


def test_a_push_that_is_not_allowed_fails_before_the_download(floor: Floor) -> None:
    job = floor.run(floor.order(output={"repo": "strangers/merged"}))
    assert (job.state, job.error_code) == ("failed", "permission_denied")
    assert floor.hub.stats.bytes["weight"] == 0


def test_a_revoked_token_is_a_clear_failure(floor: Floor) -> None:
    job_id = floor.order(**PUSHED)
    floor.hub.tokens.revoke(TOKEN)
    job = floor.run(job_id)
    assert job.state == "failed" and job.error_findings is not None
    assert {finding["code"] for finding in job.error_findings} == {"token_invalid"}


def test_bytes_that_are_not_the_commits_never_reach_the_merge(floor: Floor) -> None:
    files = [path.name for path in (floor.hub.store.root / "team/base").glob("*.safetensors")]
    job_id = floor.order(attempts=1, **PUSHED)
    for name in files:
        floor.hub.faults.add("get", Fault(corrupt=True), times=50, path=name)
    job = floor.run(job_id)
    assert job.state == "failed"
    assert commits(floor) == 0


def test_a_full_disk_is_told_before_the_download(floor: Floor) -> None:
    job_id = floor.order(**PUSHED)
    run_job(replace(floor.workshop, free_bytes=lambda _: 1000), job_id, "worker-1")
    job = floor.job(job_id)
    assert (job.state, job.error_code) == ("failed", "disk_full")
    assert "MERGERY_SCRATCH_DIR" in (job.error_detail or "") and floor.hub.stats.bytes["weight"] == 0


def test_the_hubs_token_is_nowhere_in_the_database(floor: Floor) -> None:
    job_id = floor.order(**PUSHED)
    floor.hub.faults.add("create", Fault(status=403, message=f"Bearer {TOKEN} may not"))
    floor.run(job_id)
    with floor.sessions() as session:
        tables = session.scalars(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        ).all()
        for table in tables:
            rows = session.execute(text(f"SELECT t::text FROM {table} t")).scalars().all()
            assert not any(TOKEN in (row or "") for row in rows), table
