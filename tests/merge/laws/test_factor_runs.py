"""Laws of the engine with every method on the factors of adapters: whole runs, into both forms."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge.errors import Stopped
from tests.merge.references import merged_factors, on_factors, tensors_digest, with_adapters

STEPS = on_factors()
FORMS: Mapping[str, dict[str, Any]] = {"checkpoint": {}, "adapter": {"form": "adapter", "error": 0.0}}
EVERY = pytest.mark.parametrize("step", [name for name in STEPS if name.endswith(".moved")])
EACH_FORM = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_adapters(tmp_path_factory.mktemp("adapters"))


@EVERY
@EACH_FORM
def test_threads_blocks_and_files_do_not_change_a_bit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, form: str
) -> None:
    digests = set()
    for threads, block, shard in ((1, 1 << 14, 64 << 10), (2, 1 << 16, 400_000), (4, 1 << 20, 1 << 30)):
        monkeypatch.setattr("merge.planning.sizing.MOST_BLOCK_ELEMENTS", block)
        out = tmp_path / str(threads)
        merged_factors(root, STEPS[step], out, threads=threads, shard_bytes=shard, result=FORMS[form])
        digests.add(tensors_digest(out))
    assert len(digests) == 1


@EVERY
@EACH_FORM
def test_stopped_anywhere_and_resumed_gives_the_same_bytes(
    root: Path, tmp_path: Path, step: str, form: str
) -> None:
    more: dict[str, Any] = {"shard_bytes": 64 << 10, "result": FORMS[form]}
    straight = merged_factors(root, STEPS[step], tmp_path / "straight", **more)
    out = tmp_path / "halting"
    for limit in itertools.count(3, 3):
        calls = itertools.count()
        try:
            merged_factors(root, STEPS[step], out, should_stop=lambda c=calls, n=limit: next(c) >= n, **more)
            break
        except Stopped:
            assert not out.exists()
    assert limit > 3, "it was stopped at least once"
    assert tensors_digest(out) == tensors_digest(straight)
