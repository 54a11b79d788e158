"""The measuring phase: models are run on texts once, and what that gave is found again."""

import hashlib
import io
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from db import statistics
from db.models.job import Job
from jobs.submit import retry
from merge.checkpoint.index import index_folder
from merge.errors import CalibrationFormat, CalibrationTooLarge
from merge.learn.collect import collect
from merge.learn.samples import read_samples
from merge.learn.statistics import read_manifest
from merge.learn.walk import Stage
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run as run_merge
from tests.factories import let_lease_run_out, make_caller, make_job, make_rules
from tests.worker.conftest import Floor, family_recipe
from worker.datasets import parquet_texts
from worker.measuring import Measurer
from worker.sweep import recover

AIM: dict[str, Any] = {
    "steps": [{"method": "task_arithmetic"}, {"method": "aim"}],
    "calibration": {"documents": 8, "tokens": 32},
}


def aim_recipe(**changes: Any) -> dict[str, Any]:
    """Task arithmetic of two experts, held back by the activity of their base."""
    return family_recipe(**{**AIM, **changes})


def phases(floor: Floor, job: Job) -> list[str]:
    return [event.data["phase"] for event in floor.events(job.id) if event.type == "merge.phase"]


def measured(floor: Floor, job: Job) -> list[dict[str, Any]]:
    return [event.data for event in floor.events(job.id) if event.type == "merge.measured"]


def test_a_job_measures_what_its_method_needs_and_a_second_one_finds_it_again(floor: Floor) -> None:
    job = floor.run(floor.order(aim_recipe()))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    assert phases(floor, job) == ["downloading", "measuring", "merging", "evaluating", "finalising"]
    (told,) = measured(floor, job)
    assert told["model"] == "base" and told["found"] is False and told["tokens"] == 8 * 32
    again = floor.run(floor.order(aim_recipe()))
    assert again.state == "succeeded", (again.error_code, again.error_detail)
    (found,) = measured(floor, again)
    assert found["found"] is True and found["digest"] == told["digest"]
    assert again.plan["statistics"]["found"] == ["base"] and again.plan["statistics"]["seconds"] == 0


def test_what_a_stage_has_merged_is_held_back_by_the_activity_of_the_base(floor: Floor) -> None:
    stage = family_recipe(steps=["iso_c"])
    source = {"id": "merged", "model": "stage:whole"}
    recipe = aim_recipe(
        stages={"whole": stage}, sources=[source], steps=["passthrough", {"method": "aim", "omega": 0.4}]
    )
    job = floor.run(floor.order(recipe))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    (told,) = measured(floor, job)
    assert told["model"] == "base" and told["found"] is False


def store_of(floor: Floor) -> Path:
    return floor.folder / "data" / "statistics"


def rows(floor: Floor) -> list[Any]:
    with floor.sessions() as session:
        caller = make_caller(session)
        return list(statistics.page(session, caller.tenant_id, limit=100))


def test_the_row_tells_what_was_measured_and_the_folder_is_the_tenants(floor: Floor) -> None:
    job = floor.run(floor.order(aim_recipe()))
    (told,), (row,) = measured(floor, job), rows(floor)
    assert (row.digest, row.kinds, row.data, row.tokens) == (
        told["digest"],
        ["mean_abs_input"],
        "default",
        256,
    )
    assert row.model == f"team/base@{floor.hub.head('team/base')}" and row.size > 1000
    folder = store_of(floor) / job.tenant_id / row.digest
    assert read_manifest(folder).digest == row.digest
    assert not list((floor.folder / "data/scratch/jobs").iterdir())


def test_the_result_has_the_bytes_that_the_engine_makes_of_the_same_statistics(floor: Floor) -> None:
    job = floor.run(floor.order(aim_recipe()))
    assert job.result is not None, job.error_detail
    recipe = recipe_from(aim_recipe())
    root = floor.hub.store.root / "team"
    folders = {"base": root / "base", "a": root / "expert1", "b": root / "expert2"}
    models = {key: index_folder(path, key) for key, path in folders.items()}
    samples = read_samples("default", documents=8, tokens=32)
    held = floor.folder / "held"
    collect(folders["base"], models["base"], samples, ["mean_abs_input"], out=held)
    out = floor.folder / "alone"
    plan = make_plan(recipe, models, budget=1 << 30)
    run_merge(plan, folders, out, budget_bytes=1 << 30, threads=1, statistics={"base": held})
    for path in out.glob("*.safetensors"):
        assert (Path(job.result["folder"]) / path.name).read_bytes() == path.read_bytes(), path.name


def test_another_tenant_measures_for_itself(floor: Floor) -> None:
    first = floor.run(floor.order(aim_recipe()))
    with floor.sessions.begin() as session:
        stranger = make_caller(session, "stranger")
        recipe = aim_recipe(base="./base", sources=["./expert1", "./expert2"])
        rules = make_rules(model_roots=[floor.hub.store.root / "team"])
        other = make_job(session, stranger, rules=rules, recipe=recipe).id
    second = floor.run(other)
    assert (first.state, second.state) == ("succeeded", "succeeded"), second.error_detail
    assert [each["found"] for each in measured(floor, second)] == [False]
    assert len(list(store_of(floor).iterdir())) == 2


def test_a_folder_that_nobody_touched_is_known_again_without_reading_it(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = aim_recipe(base="./base", sources=["./expert1", "./expert2"])
    first = floor.run(floor.order(recipe))
    assert first.state == "succeeded", first.error_detail
    monkeypatch.setattr("worker.measuring.hashlib.file_digest", None)
    second = floor.run(floor.order(recipe))
    assert second.plan["statistics"]["found"] == ["base"]
    assert [each["found"] for each in measured(floor, second)] == [True]


def test_the_same_weights_from_a_folder_and_from_the_hub_are_measured_once(floor: Floor) -> None:
    floor.run(floor.order(aim_recipe()))
    job = floor.run(floor.order(aim_recipe(base="./base")))
    assert job.state == "succeeded", job.error_detail
    assert [each["found"] for each in measured(floor, job)] == [True]
    assert len(rows(floor)) == 1


def test_other_data_is_measured_anew(floor: Floor) -> None:
    floor.run(floor.order(aim_recipe()))
    (floor.hub.store.root / "team" / "texts.txt").write_text("Some words for a small model. " * 20)
    calibration = {"data": {"path": "texts.txt"}, "documents": 4, "tokens": 32}
    job = floor.run(floor.order(aim_recipe(calibration=calibration)))
    assert job.state == "succeeded", job.error_detail
    assert [each["found"] for each in measured(floor, job)] == [False]
    assert {row.data for row in rows(floor)} == {"default", "texts.txt"}


class Killed(BaseException):
    """Ends a worker as a kill does: nobody catches it, nothing is recorded."""


def test_an_attempt_after_a_kill_goes_on_from_the_last_finished_block(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[str] = []
    fill = Stage.fill

    def counted(stage: Stage, *arguments: Any) -> None:
        filled.append(stage.path)
        if len(filled) == 4:
            raise Killed
        fill(stage, *arguments)

    monkeypatch.setattr(Stage, "fill", counted)
    job_id = floor.order(aim_recipe())
    with pytest.raises(Killed):
        floor.run(job_id)
    assert floor.job(job_id).state == "running"
    with floor.sessions.begin() as session:
        let_lease_run_out(session, job_id)
    assert recover(floor.sessions.begin) == [job_id]
    job = floor.run(job_id)
    assert (job.state, job.attempt) == ("succeeded", 2), job.error_detail
    assert filled.count(filled[3]) == 2
    assert len(filled) == len(set(filled)) + 1, filled
    assert [each["found"] for each in measured(floor, job)] == [False]


def test_two_jobs_that_need_the_same_at_once_measure_it_once(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=20)
    measure = Measurer.measure

    def together(measurer: Measurer, *arguments: Any) -> dict[str, Path]:
        both.wait()
        return measure(measurer, *arguments)

    monkeypatch.setattr(Measurer, "measure", together)
    orders = [floor.order(aim_recipe()) for _ in range(2)]
    threads = [threading.Thread(target=floor.run, args=(each,)) for each in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    told = [each["found"] for order in orders for each in measured(floor, floor.job(order))]
    assert sorted(told) == [False, True]


def test_cancelling_while_measuring_ends_the_job_and_a_retry_goes_on(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[str] = []
    fill = Stage.fill

    def slow(stage: Stage, *arguments: Any) -> None:
        filled.append(stage.path)
        if len(filled) == 3:
            floor.cancel(job_id)
            time.sleep(0.6)
        fill(stage, *arguments)

    monkeypatch.setattr(Stage, "fill", slow)
    job_id = floor.order(aim_recipe())
    job = floor.run(job_id)
    assert (job.state, phases(floor, job)[-1]) == ("cancelled", "measuring")
    assert not rows(floor)
    done = list(filled)
    with floor.sessions.begin() as session:
        again = retry(session, make_caller(session), floor.job(job_id), make_rules()).id
    assert floor.run(again).state == "succeeded"
    assert filled.count(done[0]) == 1


def test_progress_counts_tokens_and_their_speed(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.context.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("jobs.lifecycle.PROGRESS_EVENT_SECONDS", 0.0)
    floor.changes["heartbeat_seconds"] = 5.0
    job = floor.run(floor.order(aim_recipe()))
    told = [
        event.data
        for event in floor.events(job.id)
        if event.type == "merge.progress" and event.data["phase"] == "measuring"
    ]
    assert told and told[-1]["tokens_total"] == 256
    assert all(each["tokens_per_second"] > 0 and each["blocks_total"] >= 6 for each in told)
    done = [each["tokens_done"] for each in told]
    assert done == sorted(done)


def test_the_longest_unused_go_when_there_are_too_many(floor: Floor) -> None:
    first = floor.run(floor.order(aim_recipe()))
    (one,) = rows(floor)
    floor.changes["max_statistics_bytes"] = one.size + 1
    calibration = {"documents": 4, "tokens": 32}
    second = floor.run(floor.order(aim_recipe(calibration=calibration)))
    assert (first.state, second.state) == ("succeeded", "succeeded")
    (kept,) = rows(floor)
    assert kept.digest == measured(floor, second)[0]["digest"]
    assert [path.name for path in store_of(floor).glob("*/[!.]*")] == [kept.digest]
    third = floor.run(floor.order(aim_recipe()))
    assert third.state == "succeeded" and measured(floor, third)[0]["found"] is False


def test_a_folder_that_was_lost_is_measured_again(floor: Floor) -> None:
    first = floor.run(floor.order(aim_recipe()))
    shutil.rmtree(store_of(floor) / first.tenant_id)
    second = floor.run(floor.order(aim_recipe()))
    assert second.state == "succeeded", second.error_detail
    assert second.plan["statistics"]["missing"] == ["base"]
    assert [each["found"] for each in measured(floor, second)] == [False]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("white.txt", b" \n\n \n", "calibration_empty"),
        ("short.txt", b"a", "calibration_too_short"),
        ("late.txt", b"word " * 20_000 + b"\xff", "calibration_encoding"),
        ("late.jsonl", b'{"text": "words"}\n' * 5000 + b'{"words": 1}\n', "calibration_format"),
        ("broken.parquet", b"PAR1 and then nothing", "calibration_format"),
    ],
)
def test_data_that_is_wrong_anywhere_stops_the_job(
    floor: Floor, name: str, content: bytes, code: str
) -> None:
    (floor.hub.store.root / "team" / name).write_bytes(content)
    job = floor.run(floor.order(aim_recipe(calibration={"data": {"path": name}})))
    found = job.error_findings[0]["code"] if job.error_findings else job.error_code
    assert (job.state, found) == ("failed", code), job.error_detail
    assert floor.hub.stats.bytes["weight"] == 0


def dataset(floor: Floor, name: str, content: bytes) -> None:
    """A dataset repository on the folder Hub with one file."""
    folder = floor.hub.store.root / "datasets" / "team" / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def table(texts: list[str | None], column: str = "text") -> bytes:
    """A Parquet file with one column."""
    written = io.BytesIO()
    parquet.write_table(pyarrow.table({column: texts}), written)
    return written.getvalue()


@pytest.mark.parametrize("name", ["lines.jsonl", "plain.txt", "table.parquet"])
def test_data_of_the_hub_is_pinned_to_a_commit(floor: Floor, name: str) -> None:
    texts = [f"Document {number} has these few words in it." for number in range(20)]
    contents = {
        "lines.jsonl": "".join(json.dumps({"text": each}) + "\n" for each in texts).encode(),
        "plain.txt": "\n\n".join(texts).encode(),
        "table.parquet": table([*texts, None, ""]),
    }
    dataset(floor, name, contents[name])
    calibration = {"data": {"hub": "team/texts", "file": name}, "documents": 8, "tokens": 16}
    job = floor.run(floor.order(aim_recipe(calibration=calibration)))
    assert job.state == "succeeded", (job.error_detail, job.error_findings)
    commit = floor.hub.head("team/texts", "dataset")
    made = json.loads((Path(job.result["folder"]) / "mergery.json").read_bytes())
    assert made["recipe"]["calibration"]["data"]["hub"] == f"team/texts@{commit}"
    digests = {row.data_sha256 for row in rows(floor)}
    assert digests == {hashlib.sha256(contents[name]).hexdigest()}


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("no.txt", "file_missing"),
        ("words.parquet", "calibration_format"),
        ("bomb.parquet", "calibration_too_large"),
    ],
)
def test_a_dataset_that_cannot_be_read_stops_the_job_before_the_download(
    floor: Floor, file: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.datasets.parquet_texts.__defaults__", (1 << 20,))
    dataset(floor, "words.parquet", table(["x"], "words"))
    dataset(floor, "bomb.parquet", table(["x" * 1000] * 5000))
    calibration = {"data": {"hub": "team/texts", "file": file}}
    job = floor.run(floor.order(aim_recipe(calibration=calibration)))
    found = job.error_findings[0]["code"] if job.error_findings else job.error_code
    assert (job.state, found) == ("failed", code), job.error_detail
    assert floor.hub.stats.bytes["weight"] == 0


def test_categories_of_texts_are_texts_and_two_columns_of_one_name_are_refused() -> None:
    texts = pyarrow.array(["Words in a column. " * 3, None, "Other words there. " * 3])
    for kind in (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.string_view()):
        assert parquet_texts(_table(texts.cast(kind)), "t") == (texts[0].as_py(), texts[2].as_py())
    with pytest.raises(CalibrationFormat, match="2 columns that are called 'text'"):
        parquet_texts(_table(texts, texts), "t")
    with pytest.raises(CalibrationFormat, match="no column 'text' of texts"):
        parquet_texts(_table(pyarrow.array([1, 2]).dictionary_encode()), "t")


def _table(*columns: pyarrow.Array) -> bytes:
    written = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["text"] * len(columns)), written)
    return written.getvalue()


def test_what_a_small_file_unfolds_to_is_counted_in_bytes() -> None:
    """One text many times: the file says that it holds it once."""
    folded = table(["日" * 1000] * 500)
    assert len(folded) < 20_000 and len(parquet_texts(folded, "texts", 3 * 500_000)) == 500
    with pytest.raises(CalibrationTooLarge, match="unfolds to more than 1499999 bytes"):
        parquet_texts(folded, "texts", 3 * 500_000 - 1)


def test_each_source_is_measured_on_the_data_that_is_bound_to_its_id(floor: Floor) -> None:
    dataset(floor, "code.txt", b"def add(a, b): return a + b. " * 20)
    calibration = {
        "by_source": {"b": {"hub": "team/texts", "file": "code.txt"}},
        "documents": 4,
        "tokens": 32,
    }
    recipe = aim_recipe(steps=[{"method": "fisher"}], calibration=calibration)
    job = floor.run(floor.order(recipe))
    assert job.state == "succeeded", (job.error_detail, job.error_findings)
    assert [each["model"] for each in measured(floor, job)] == ["a", "b"]
    commit = floor.hub.head("team/texts", "dataset")
    told = {row.model.partition("@")[0]: (row.data, row.kinds) for row in rows(floor)}
    assert told == {
        "team/expert1": ("default", ["fisher"]),
        "team/expert2": (f"team/texts@{commit}:code.txt", ["fisher"]),
    }
    assert job.plan["statistics"]["data"] == {"a": "default", "b": f"team/texts@{commit}:code.txt"}
