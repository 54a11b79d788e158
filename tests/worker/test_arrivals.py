"""Inputs that are merged while they arrive, as far as they are read; nothing wrong is ever pushed."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from db.models.job import JobEvent
from hub.folder_faults import Fault
from jobs import fetching
from tests.waiting import until
from tests.worker.conftest import Floor, family_recipe
from tests.worker.merging import PUSHED, REPO, commits, start, undisturbed
from worker import merge_job

SECOND = "model-00002-of-00002.safetensors"


def swapped(**changes: Any) -> dict[str, Any]:
    """The base, with two layers of one expert and two of the other, from both files of each."""
    taken = [(0, "a"), (5, "a"), (1, "b"), (4, "b")]
    return family_recipe(
        steps=["linear"],
        classes=dict.fromkeys(("embed", "head", "norm", "linear"), "base"),
        overrides=[{"match": f"model.layers.{n}.*", "policy": f"source:{key}"} for n, key in taken],
        **changes,
    )


@pytest.fixture
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with models so large that a gap is worth a request."""
    monkeypatch.setattr(fetching, "GAP_BYTES", 0)


def weight_bytes(floor: Floor) -> int:
    return floor.hub.stats.bytes["weight"]


def events(floor: Floor, job_id: str, type_: str) -> list[JobEvent]:
    return [event for event in floor.events(job_id) if event.type == type_]


def same_weights(floor: Floor, recipe: dict[str, Any]) -> None:
    for name, content in undisturbed(floor, recipe).items():
        if name.endswith(".safetensors"):
            assert floor.read(REPO, name) == content, name


def test_a_layer_swap_fetches_only_the_bytes_it_is_made_of(floor: Floor, exactly: None) -> None:
    job = floor.run(floor.order(swapped(), **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    same_weights(floor, swapped())
    size = sum(path.stat().st_size for path in (floor.hub.store.root / "team/base").glob("*.safetensors"))
    fetched = weight_bytes(floor)
    assert fetched < 1.2 * size, "three models lie there, and one is what it takes"
    assert job.plan is not None
    told = job.plan["estimate"]["download_bytes"]
    assert fetched <= told <= fetched + 60_000, "the small files come beside"
    said = {each["model"] for each in job.plan["findings"] if each["code"] == "fetched_in_part"}
    assert said >= {"a", "b"}
    manifest = json.loads(floor.read(REPO, "mergery.json"))
    assert set(manifest["inputs"]["a"]["files_sha256"]) <= {
        f"model-0000{n}-of-00002.safetensors" for n in (1, 2)
    }
    card, recipe = floor.read(REPO, "README.md").decode(), manifest["recipe"]
    for name in (recipe["base"], *(source["model"] for source in recipe["sources"])):
        assert f" --local-dir {name}\n" in card, "where the recipe of the card looks for it"


def test_models_that_are_scored_beside_the_result_come_whole(floor: Floor, exactly: None) -> None:
    (floor.hub.store.root / "team" / "texts.jsonl").write_text('{"text": "to be or not to be"}\n' * 4)
    sets = [{"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}]
    job = floor.run(floor.order(swapped(), evaluate={"sets": sets}, **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    folders = [floor.hub.store.root / "team" / name for name in ("base", "expert1", "expert2")]
    whole = sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))
    assert job.plan is not None and job.plan["estimate"]["download_bytes"] >= whole
    assert weight_bytes(floor) >= 0.9 * whole


def once_planned(monkeypatch: pytest.MonkeyPatch, floor: Floor, fault: Fault, times: int = 1) -> None:
    """Arms a fault of the second files when headers have been read and weights have not."""
    real = merge_job.bring

    def bring(*arguments: Any, **options: Any) -> Any:
        floor.hub.faults.clear()
        floor.hub.faults.add("get", fault, path=SECOND, times=times)
        return real(*arguments, **options)

    monkeypatch.setattr(merge_job, "bring", bring)


def test_the_merge_begins_before_everything_is_there(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    once_planned(monkeypatch, floor, Fault(delay=3), 3)
    job = floor.run(floor.order(**PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    merging = next(e for e in events(floor, job.id, "merge.phase") if e.data["phase"] == "merging")
    shards = [e for e in events(floor, job.id, "merge.artifact") if e.data["kind"] == "shard"]
    waits = [(each.at - merging.at).total_seconds() for each in shards]
    assert waits[0] < waits[-1] - 0.5, waits
    same_weights(floor, family_recipe())


def test_what_was_merged_of_wrong_bytes_is_thrown_away_and_made_anew(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_planned(monkeypatch, floor, Fault(corrupt=True, delay=3))
    job_id = floor.order(**PUSHED)
    job = floor.run(job_id)
    assert job.state == "queued"
    assert events(floor, job_id, "merge.requeued")[0].data["code"] == "download_tainted"
    assert commits(floor) == 0
    partial = floor.folder / "data" / "scratch" / "jobs" / job_id / "output.partial"
    assert not partial.exists()
    with floor.sessions.begin() as session:
        session.execute(text("UPDATE job SET not_before = NULL"))
    monkeypatch.undo()
    job = floor.run(job_id)
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    same_weights(floor, family_recipe())


def test_nothing_is_pushed_of_weights_that_are_not_what_the_commit_lists(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_planned(monkeypatch, floor, Fault(corrupt=True), 99)
    job_id = floor.order(attempts=2, **PUSHED)
    for _ in range(2):
        job = floor.run(job_id)
        assert commits(floor) == 0
        floor.hub.faults.clear()
        with floor.sessions.begin() as session:
            session.execute(text("UPDATE job SET not_before = NULL"))
    assert job.state == "failed" and job.error_code in ("download_tainted", "hash_mismatch", "not_finite")
    assert commits(floor) == 0


def test_cancel_does_not_wait_for_the_time_that_the_hub_asked_for(floor: Floor) -> None:
    floor.hub.faults.add("info", Fault(status=429, headers={"retry-after": "40"}), times=99)
    job_id = floor.order(**PUSHED)
    thread = start(floor, job_id)
    until(lambda: floor.hub.stats.requests["info"])
    floor.cancel(job_id)
    thread.join(20)
    assert not thread.is_alive() and floor.job(job_id).state == "cancelled"
