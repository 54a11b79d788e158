"""A run that was stopped goes on, begins anew where something has changed, or is told what is in the way."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from merge.errors import (
    InputChanged,
    OutputBusy,
    OutputExists,
    Stopped,
)
from merge.journal import partial_folder, sample_of
from merge.report import ShardDone
from tests.merge import exact
from tests.merge.references import DIGESTS, tensors_digest
from tests.merge.runs import merged, planned

COMMITTED = json.loads(DIGESTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("chain", ["ties_global", "slerp"])
def test_interrupted_after_each_shard_and_resumed_gives_the_same_bytes(
    folders: Mapping[str, Path], tmp_path: Path, chain: str
) -> None:
    plan = planned(folders, chain)
    out = tmp_path / "out"
    made: list[tuple[str, bool]] = []
    for _ in plan.shards:
        count = len(made)

        def note(done: ShardDone, before: int = count) -> None:
            made.append((done.file, done.reused))
            if not done.reused and len(made) > before:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            merged(plan, folders, out, on_shard=note)
        assert not out.exists()
    report = merged(plan, folders, out)
    assert len(plan.shards) > 2
    assert all(file.reused for file in report.files if file.file.endswith(".safetensors"))
    assert [file for file, reused in made if not reused] == [shard.file for shard in plan.shards], (
        "each written once"
    )
    assert tensors_digest(out) == COMMITTED[chain]


def stop_after(calls: int) -> Callable[[], bool]:
    """Says stop from the given call on."""
    count = iter(range(1_000_000))
    return lambda: next(count) >= calls


@pytest.mark.parametrize("calls", [0, 3, 12, 25])
def test_stopping_leaves_no_output_and_a_later_run_the_same_bytes(
    folders: Mapping[str, Path], tmp_path: Path, calls: int
) -> None:
    plan = planned(folders, "ties_global")
    with pytest.raises(Stopped):
        merged(plan, folders, tmp_path / "out", 2, should_stop=stop_after(calls))
    assert not (tmp_path / "out").exists()
    merged(plan, folders, tmp_path / "out", 2)
    assert tensors_digest(tmp_path / "out") == COMMITTED["ties_global"]


def test_a_damaged_shard_is_made_again(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan = planned(folders)
    out = tmp_path / "out"

    def crash_at_second(done: ShardDone) -> None:
        if done.file == plan.shards[1].file:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(plan, folders, out, on_shard=crash_at_second)
    first = partial_folder(out) / plan.shards[0].file
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    report = merged(plan, folders, out)
    assert [file.reused for file in report.files[:3]] == [False, True, False]
    assert tensors_digest(out) == COMMITTED["ties"]


def test_a_shard_the_caller_took_away_is_not_made_again(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan = planned(folders)
    out, seen = tmp_path / "out", []

    def take_first(done: ShardDone) -> None:
        seen.append(done.file)
        if done.file == plan.shards[0].file:
            done.path.unlink()
        if done.file == plan.shards[2].file:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(plan, folders, out, on_shard=take_first)
    report = merged(plan, folders, out, on_shard=lambda done: seen.append(done.file))
    assert seen.count(plan.shards[0].file) == 1
    assert [file.released for file in report.files[:3]] == [True, False, False]
    assert not (out / plan.shards[0].file).exists()
    assert report.manifest["files"][plan.shards[0].file]["sha256"] == report.files[0].sha256
    assert [file.released for file in merged(plan, folders, out).files] == [
        file.released for file in report.files
    ], "nor is it said to be there by a run that finds the result finished"


def test_other_weights_in_the_same_place_start_over(tmp_path: Path) -> None:
    folders = exact.family(tmp_path)
    plan = planned(folders)
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        merged(plan, folders, out, should_stop=stop_after(10))
    shutil.rmtree(folders["a"])
    exact.write(folders["a"], "another")
    report = merged(plan, folders, out)
    assert not any(file.reused for file in report.files)


def change_between_samples(file: Path) -> None:
    """Changes one number where no sample of the file is taken."""
    content = bytearray(file.read_bytes())
    content[len(content) // 30] ^= 1
    before = sample_of(file)
    file.write_bytes(content)
    assert sample_of(file) == before


def test_a_change_of_one_number_between_two_runs_starts_over(tmp_path: Path) -> None:
    folders = exact.family(tmp_path)
    plan, seen = planned(folders), list[str]()

    def note(done: ShardDone) -> None:
        seen.append(done.file)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(plan, folders, tmp_path / "out", on_shard=note)
    change_between_samples(folders["a"] / "model.safetensors")
    report = merged(plan, folders, tmp_path / "out")
    assert seen and not any(file.reused for file in report.files)


def test_a_result_from_before_an_input_was_written_to_is_in_the_way(tmp_path: Path) -> None:
    folders = exact.family(tmp_path)
    plan = planned(folders)
    merged(plan, folders, tmp_path / "out")
    change_between_samples(folders["a"] / "model.safetensors")
    with pytest.raises(OutputExists, match="written to after"):
        merged(plan, folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("first", "then"),
    [({"survey": "none"}, {"survey": "full"}), ({"digests": False}, {"digests": True})],
)
def test_a_result_that_lacks_what_is_asked_for_now_is_in_the_way(
    first: dict[str, Any], then: dict[str, Any], folders: Mapping[str, Path], tmp_path: Path
) -> None:
    plan = planned(folders)
    merged(plan, folders, tmp_path / "out", **first)
    assert all(file.reused for file in merged(plan, folders, tmp_path / "out", **first).files)
    with pytest.raises(OutputExists, match="another merge report or without digests"):
        merged(plan, folders, tmp_path / "out", **then)


def test_files_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    folders = exact.family(tmp_path)
    plan = planned(folders)
    with (folders["a"] / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputChanged, match=r"model\.safetensors of a "):
        merged(plan, folders, tmp_path / "out")


def test_running_again_finds_the_finished_result(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan = planned(folders)
    first = merged(plan, folders, tmp_path / "out")
    again = merged(plan, folders, tmp_path / "out")
    assert {f.file: f.sha256 for f in again.files} == {f.file: f.sha256 for f in first.files}
    with pytest.raises(OutputExists):
        merged(planned(folders, seed=8), folders, tmp_path / "out")


def test_of_two_runs_into_one_folder_the_second_is_refused(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    plan, out, refused = planned(folders), tmp_path / "out", list[str]()

    def another(_: ShardDone) -> None:
        with pytest.raises(OutputBusy, match="Another merge is at work") as raised:
            merged(planned(folders, seed=8), folders, out)
        refused.append(raised.value.code)

    merged(plan, folders, out, on_shard=another)
    assert len(refused) == len(plan.shards)
    assert tensors_digest(out) == COMMITTED["ties"]
