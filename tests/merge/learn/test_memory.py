"""A walk holds one block, whatever the model's size: measured from outside what it believes of itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.learn import make
from merge.checkpoint.index import index_folder
from merge.errors import BudgetTooSmall, ModelNotRun
from merge.learn.collect import collect
from merge.learn.forecast import bytes_whole, can_stream, largest_stage
from tests.merge.learn import models

SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "heads": 16, "kv": 8}
MOST = 250 << 20
WATCHED = """
import json, sys
from pathlib import Path
from bench.learn import anonymous, peak_of, samples_of_words
from merge.checkpoint.index import index_folder
from merge.learn.collect import collect
from merge.learn.samples import samples_of
import transformers.models.llama.modeling_llama

folder = Path(sys.argv[1])
index, given = index_folder(folder), samples_of_words(1)
idle = anonymous()
with peak_of() as peaks:
    collect(folder, index, given, ["mean_abs_input"], folder.parent / "out", model_sha256="0" * 64)
print(json.dumps({"peak": max(peaks) - idle, "seen": len(peaks)}))
"""


def test_one_block_at_a_time_is_in_memory(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", SHAPE, filled=False)
    assert bytes_whole(index_folder(folder)) > 3 * MOST
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["seen"] > 50
    assert found["peak"] < MOST


def test_too_little_memory_is_said_before_anything_is_run(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", SHAPE, filled=False)
    index = index_folder(folder)
    given = models.samples()
    needed = largest_stage(index, ["gram"], given.documents, given.tokens)
    assert largest_stage(index, ["mean_abs_input"]) < needed < bytes_whole(index)
    with pytest.raises(BudgetTooSmall, match="MiB are allowed"):
        collect(
            folder,
            index,
            given,
            ["gram"],
            tmp_path / "out",
            memory_bytes=needed - 1,
            model_sha256="0",
        )
    assert not (tmp_path / "out.partial").exists()


def test_a_model_that_cannot_be_walked_is_refused_where_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.make(tmp_path / "model", "albert")
    index = index_folder(folder)
    assert can_stream(index.config) is False
    assert can_stream(index_folder(models.make(tmp_path / "other", "llama")).config) is True
    assert can_stream({"model_type": "unheard_of"}) is None
    monkeypatch.setattr("merge.learn.collect.largest_stage", lambda *_: 0)
    memory, out = bytes_whole(index), tmp_path / "out"
    with pytest.raises(ModelNotRun, match=r"cannot be run block by block .* called twice"):
        collect(folder, index, models.samples(), ["mean_abs_input"], out, memory_bytes=memory - 1)
    assert collect(folder, index, models.samples(), ["mean_abs_input"], out, memory_bytes=memory).axis
