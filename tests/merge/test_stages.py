from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from merge.errors import Stopped
from merge.journal import partial_folder
from merge.report import Progress
from merge.running.fused import loops
from merge.stage_reader import StageReader
from tests.merge import exact
from tests.merge.stages import BUDGET, by_hand, contents, merged, planned

DARE: dict[str, Any] = {"method": "dare", "density": 0.4}
TIES: dict[str, Any] = {"method": "ties", "density": 0.3}
LINEAR: dict[str, Any] = {"sources": ["a", "b"], "steps": ["linear"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return exact.family(tmp_path_factory.mktemp("family"), shards=2, config={"num_hidden_layers": 2})


STREAMED: dict[str, dict[str, Any]] = {
    "linear": {"stages": {"one": LINEAR}, "sources": ["stage:one", "c"], "steps": ["linear"]},
    "ties over dare": {
        "stages": {"one": {"base": "base", "sources": ["a", "b"], "steps": [DARE, TIES], "seed": 3}},
        "base": "base",
        "sources": [{"id": "x", "model": "stage:one", "weight": 0.5}, {"id": "y", "model": "c"}],
        "steps": [TIES],
    },
    "rows": {
        "stages": {"one": {"sources": ["a", "b"], "steps": [{"method": "nuslerp", "along": "rows"}]}},
        "sources": ["stage:one", "c"],
        "steps": [{"method": "slerp", "t": 0.3}],
    },
    "two levels, one stage used twice": {
        "stages": {
            "low": {"base": "base", "sources": ["a", "b"], "steps": [TIES]},
            "left": {"sources": ["stage:low", "c"], "steps": [{"method": "slerp", "t": 0.3}]},
            "right": {"base": "stage:low", "sources": ["c"], "steps": [{"method": "task_arithmetic"}]},
        },
        "sources": ["stage:left", "stage:right"],
        "steps": ["linear"],
    },
    "a stage as base, other dtypes": {
        "stages": {"ground": {**LINEAR, "dtype": {"output": "float16", "compute": "float64"}}},
        "base": "stage:ground",
        "sources": ["a", "b"],
        "steps": [DARE, TIES],
        "dtype": {"output": "float32"},
    },
    "slices of a stage": {
        "stages": {"one": {"base": "base", "sources": ["a", "b"], "steps": [TIES]}},
        "sources": [{"id": "x", "model": "stage:one"}, {"id": "y", "model": "c"}],
        "slices": [
            {"sources": [{"id": "x", "layers": [0, 1]}]},
            {"sources": [{"id": "x", "layers": [0, 2]}]},
            {"sources": [{"id": "y", "layers": [1, 2]}]},
        ],
        "steps": ["passthrough"],
    },
    "global ranks over a stage": {
        "stages": {"one": {"base": "base", "sources": ["a", "b"], "steps": [TIES]}},
        "base": "base",
        "sources": ["stage:one", "c"],
        "steps": [{**TIES, "scope": "global"}],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMED)
def test_a_stage_that_is_computed_on_the_way_gives_the_bytes_of_one_that_was_written(
    name: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    plan = planned(STREAMED[name], folders)
    assert [stage.why for stage in plan.staged.stages.values()] == [None] * len(STREAMED[name]["stages"])
    ours = merged(STREAMED[name], folders, tmp_path / "ours")
    assert contents(ours) == contents(by_hand(STREAMED[name], folders, tmp_path))
    assert not (tmp_path / "ours" / "stages").exists()


@pytest.mark.parametrize("name", ["ties over dare", "two levels, one stage used twice"])
def test_compiled_loops_read_and_make_stages_with_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "LEAST_TOTAL", 0)
    shapes = {"model.layers.0.mlp.up_proj.weight": (1500, 1700), "model.norm.weight": (1700,)}
    large = exact.family(tmp_path / "models", shapes=shapes)
    ours = merged(STREAMED[name], large, tmp_path / "ours")
    assert contents(ours) == contents(by_hand(STREAMED[name], large, tmp_path))


def test_rows_of_a_stage_are_made_whole_wherever_reading_begins(tmp_path: Path) -> None:
    """Blocks of what reads them begin within rows of 100 entries."""
    shapes = {"model.layers.0.mlp.up_proj.weight": (2700, 100), "model.norm.weight": (100,)}
    odd = exact.family(tmp_path / "models", ("a", "b", "c"), shapes=shapes)
    ours = merged(STREAMED["rows"], odd, tmp_path / "ours")
    assert contents(ours) == contents(by_hand(STREAMED["rows"], odd, tmp_path))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_memory_do_not_matter(threads: int, folders: Mapping[str, Path], tmp_path: Path) -> None:
    document = STREAMED["two levels, one stage used twice"]
    first = merged(document, folders, tmp_path / "first")
    second = merged(document, folders, tmp_path / "second", threads=threads, budget_bytes=BUDGET * 8)
    assert contents(first) == contents(second)


WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "a global rank": (
        "ties ranks over all tensors",
        {
            "stages": {
                "one": {"base": "base", "sources": ["a", "b"], "steps": [{**TIES, "scope": "global"}]}
            },
            "base": "base",
            "sources": ["stage:one", "c"],
            "steps": [TIES],
        },
    ),
    "whole tensors, over a stage that is computed": (
        "iso_c needs whole tensors",
        {
            "stages": {
                "low": {"base": "base", "sources": ["a", "b"], "steps": [DARE, "task_arithmetic"]},
                "one": {"base": "base", "sources": ["stage:low", "c"], "steps": ["iso_c"]},
            },
            "sources": ["stage:one", "c"],
            "steps": ["linear"],
        },
    ),
    "many reads": (
        "it is read 5 times",
        {"stages": {"one": LINEAR}, "sources": ["stage:one"] * 5, "steps": ["linear"]},
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_stage_that_cannot_be_computed_in_blocks_is_written_first(
    name: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    why, document = WRITTEN[name]
    plan = planned(document, folders)
    stage = plan.staged.stages["one"]
    assert stage.why == why
    assert stage.disk_bytes == sum(shard.size for shard in stage.plan.shards)
    ours = merged(document, folders, tmp_path / "ours")
    assert contents(ours) == contents(by_hand(document, folders, tmp_path))
    assert not (ours / "stages").exists()


def stop_after(calls: int) -> Any:
    left = [calls]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return should_stop


@pytest.mark.parametrize("name", WRITTEN)
def test_an_interrupted_run_goes_on_with_the_stages_that_are_there(
    name: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    document = deepcopy(WRITTEN[name][1])
    document["shard_bytes"] = document["stages"]["one"]["shard_bytes"] = 150_000
    whole = merged(document, folders, tmp_path / "whole")
    out = tmp_path / "out"
    one = partial_folder(out) / "stages" / "one"
    for stop, there in ((stop_after(4), partial_folder(one)), (one.exists, one), (stop_after(2), one)):
        with pytest.raises(Stopped):
            merged(document, folders, out, should_stop=stop)
        assert there.exists()
    merged(document, folders, out)
    assert contents(out) == contents(whole)
    assert not partial_folder(out).exists()


def test_a_written_stage_is_not_made_again(folders: Mapping[str, Path], tmp_path: Path) -> None:
    document = WRITTEN["a global rank"][1]
    out = tmp_path / "out"
    one = partial_folder(out) / "stages" / "one"
    with pytest.raises(Stopped):
        merged(document, folders, out, should_stop=one.exists)
    before = {path: path.stat().st_mtime_ns for path in one.iterdir()}
    with pytest.raises(Stopped):
        merged(document, folders, out, should_stop=stop_after(3))
    assert {path: path.stat().st_mtime_ns for path in one.iterdir()} == before


def test_progress_is_told_as_of_one_merge(folders: Mapping[str, Path], tmp_path: Path) -> None:
    told: list[Progress] = []
    document = WRITTEN["a global rank"][1]
    merged(document, folders, tmp_path / "out", on_progress=told.append)
    assert told[-1].tensors_done == told[-1].tensors_total == 2 * exact.TENSORS
    assert told[-1].bytes_done == told[-1].bytes_total
    done = [each.tensors_done for each in told]
    assert done == sorted(done)


def test_what_nobody_prepared_is_measured_by_the_first_who_reads(
    folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = STREAMED["two levels, one stage used twice"]
    prepared = merged(document, folders, tmp_path / "prepared")
    monkeypatch.setattr(StageReader, "prepare", lambda *_: None)
    assert contents(merged(document, folders, tmp_path / "read")) == contents(prepared)
