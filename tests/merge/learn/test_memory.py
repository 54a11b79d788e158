"""A walk holds one block, whatever the model's size: measured from outside what it believes of itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.learn import make
from merge.checkpoint.index import ModelIndex, index_folder
from merge.errors import BudgetTooSmall, ModelNotRun
from merge.learn.collect import collect
from merge.learn.forecast import bytes_whole, can_stream, largest_stage
from tests.merge.learn import models

SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "heads": 16, "kv": 8}
SMALL = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "heads": 8, "kv": 4, "vocab_size":
    4096,
}  # fmt: skip
WORDY = {"hidden_size": 64, "intermediate_size": 176, "vocab_size": 24576, "tie_word_embeddings": True}
LAYERED = "many layers"
CASES: dict[str, tuple[dict[str, int], list[str], int, int]] = {
    LAYERED: (SHAPE, ["mean_abs_input"], 1, 96),
    "gram": (SMALL, ["gram", "mean_abs_input"], 4, 512),
    "a large vocabulary": ({**SMALL, **WORDY}, ["fisher"], 1, 512),
    "wide blocks": (SMALL, ["grad_weight"], 2, 512),
}
"""Shape, kinds, blocks of texts and tokens of a block."""
MOST = 230 << 20
FIXED = 104 << 20
"""What a process holds for the first product it computes, whatever the model."""
WATCHED = """
import json, os, sys
from pathlib import Path
from bench.learn import anonymous, peak_of
from merge.checkpoint.index import ModelIndex, index_folder
from merge.learn.collect import collect
from merge.learn.samples import samples_of
import transformers.models.llama.modeling_llama

def watch(case):
    folder, tokens = Path(case["folder"]), case["tokens"]
    index = index_folder(folder)
    words = " ".join(f"w{number % 97}" for number in range(tokens))
    given = samples_of([words] * case["blocks"], tokens=tokens)
    idle = anonymous()
    with peak_of() as peaks:
        collect(folder, index, given, case["kinds"], folder.parent / "out", model_sha256="0" * 64)
    print(json.dumps([max(peaks) - idle, len(peaks)]), flush=True)

for case in json.loads(sys.argv[1]):
    child = os.fork()  # what one case has freed must not serve the next
    if child == 0:
        watch(case)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ModelIndex, int, int]]:
    """Each case run in a process of its own: the model, the peak of memory beyond idle, and how often it was
    looked at.
    """
    told, indices = [], []
    for number, (shape, kinds, blocks, tokens) in enumerate(CASES.values()):
        folder = make(tmp_path_factory.mktemp(f"case{number}") / "model", shape, filled=False)
        told.append({"folder": str(folder), "kinds": kinds, "blocks": blocks, "tokens": tokens})
        indices.append(index_folder(folder))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(told)], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    seen = [json.loads(line) for line in ran.stdout.splitlines()]
    return {
        name: (index, peak, looks) for name, index, (peak, looks) in zip(CASES, indices, seen, strict=True)
    }


def test_one_block_at_a_time_is_in_memory(watched: dict[str, tuple[ModelIndex, int, int]]) -> None:
    index, peak, looks = watched[LAYERED]
    assert bytes_whole(index) > 3 * MOST
    assert looks > 50
    assert peak < MOST


def test_the_forecast_of_memory_bounds_what_is_measured(
    watched: dict[str, tuple[ModelIndex, int, int]],
) -> None:
    for name, (index, peak, _) in watched.items():
        _, kinds, blocks, tokens = CASES[name]
        bound = largest_stage(index, kinds, blocks, tokens)
        assert peak <= bound, (name, peak >> 20, bound >> 20)
        if name != LAYERED:  # its texts are short, and what waits in files is not in memory
            assert bound <= 2 * peak + FIXED, (name, peak >> 20, bound >> 20)


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
