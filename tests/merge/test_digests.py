"""A merge without sha256 of its weights gives the same weights, and says that nothing can be verified."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from merge.errors import Stopped
from merge.report import ShardDone
from merge.run import run
from tests.merge.references import CHAINS, planned, tensors_digest

GIB = 1 << 30


def test_the_weights_are_the_same(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan, out = planned(folders, *CHAINS["ties"]), tmp_path / "out"
    told = run(plan, folders, out, budget_bytes=GIB, threads=2, digests=False)
    run(plan, folders, tmp_path / "with", budget_bytes=GIB, threads=2)
    assert tensors_digest(out) == tensors_digest(tmp_path / "with")
    weights = [file for file in told.files if file.file.endswith(".safetensors")]
    assert [file.sha256 for file in weights] == [""] * len(weights)
    files = json.loads((out / "mergery.json").read_bytes())["files"]
    for file in weights:
        assert files[file.file] == {"sha256": None, "size": (out / file.file).stat().st_size}
    assert all(found["sha256"] for name, found in files.items() if not name.endswith(".safetensors"))
    again = run(plan, folders, out, budget_bytes=GIB, threads=2, digests=False)
    assert all(file.reused for file in again.files)


def test_a_shard_that_cannot_be_verified_is_made_again(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan, out = planned(folders, *CHAINS["linear"]), tmp_path / "out"
    done: list[ShardDone] = []
    with pytest.raises(Stopped):
        run(plan, folders, out, budget_bytes=GIB, threads=1, digests=False, on_shard=done.append,
            should_stop=lambda: bool(done))  # fmt: skip
    assert (tmp_path / "out.partial" / done[0].file).exists()
    run(plan, folders, out, budget_bytes=GIB, threads=1, on_shard=done.append)
    assert [each.file for each in done].count(done[0].file) == 2
    assert not any(each.reused for each in done)
