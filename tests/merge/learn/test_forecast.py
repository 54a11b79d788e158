"""What a plan says a measurement will take bounds what it takes, and not by much."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.learn import make
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex, index_folder
from merge.learn.forecast import bytes_whole, largest_stage, scratch_bytes, seconds

SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "heads": 8, "kv": 4}
CASES: dict[str, tuple[dict[str, int], list[str], int]] = {
    "gram": ({**SMALL, "vocab_size": 4096}, ["gram", "mean_abs_input"], 4),
    "a large vocabulary": (
        {
            **SMALL,
            "hidden_size": 64,
            "intermediate_size": 176,
            "vocab_size": 24576,
            "tie_word_embeddings": True,
        },
        ["fisher"],
        1,
    ),
    "wide blocks": ({**SMALL, "vocab_size": 4096}, ["grad_weight"], 2),
}
FIXED = 104 << 20
"""What a process holds for the first product it computes, whatever the model."""
WATCHED = """
import json, sys
from pathlib import Path
from bench.learn import anonymous, peak_of, samples_of_words
from merge.checkpoint.index import index_folder
from merge.learn.collect import collect
import transformers.models.llama.modeling_llama

for case in json.loads(sys.argv[1]):
    folder = Path(case["folder"])
    index, given = index_folder(folder), samples_of_words(case["blocks"])
    idle = anonymous()
    with peak_of() as peaks:
        collect(folder, index, given, case["kinds"], folder.parent / "out", model_sha256="0" * 64)
    print(json.dumps(max(peaks) - idle))
"""


def test_the_forecast_of_memory_bounds_what_is_measured(tmp_path: Path) -> None:
    told, bounds = [], []
    for number, (shape, kinds, blocks) in enumerate(CASES.values()):
        folder = make(tmp_path / str(number) / "model", shape, filled=False)
        told.append({"folder": str(folder), "kinds": kinds, "blocks": blocks})
        bounds.append(largest_stage(index_folder(folder), kinds, blocks))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(told)], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    peaks = [json.loads(line) for line in ran.stdout.splitlines()]
    for name, peak, bound in zip(CASES, peaks, bounds, strict=True):
        assert peak <= bound <= 2 * peak + FIXED, (name, peak >> 20, bound >> 20)


def model_of(config: dict[str, Any], **shapes: tuple[int, ...]) -> ModelIndex:
    names = {
        "embed": "model.embed_tokens.weight",
        "head": "lm_head.weight",
        "up": "model.layers.0.mlp.up.weight",
    }
    names["expert"] = "model.layers.0.mlp.experts.0.up.weight"
    infos = {names[key]: TensorInfo(names[key], "F32", shape, "x", 0, 0) for key, shape in shapes.items()}
    return ModelIndex("model", infos, config, None, {}, "")


def test_gradients_take_what_lies_outside_the_blocks_too() -> None:
    without = model_of({}, up=(64, 64))
    beside = model_of({}, up=(64, 64), embed=(1 << 20, 64), head=(1 << 20, 64))
    for kind in ("fisher", "grad_weight"):
        assert largest_stage(beside, [kind]) > largest_stage(without, [kind]) + 10 * (1 << 26) * 4
    assert largest_stage(beside, ["mean_abs_input"]) < largest_stage(without, ["mean_abs_input"]) * 2


def test_a_tied_head_is_counted_once() -> None:
    shapes = {"up": (64, 64), "embed": (1 << 16, 64), "head": (1 << 16, 64)}
    tied = largest_stage(model_of({"tie_word_embeddings": True}, **shapes), ["fisher"])
    assert tied < largest_stage(model_of({"tie_word_embeddings": False}, **shapes), ["fisher"])


def test_longer_texts_and_more_of_them_take_more() -> None:
    model = model_of({"hidden_size": 64, "num_attention_heads": 8}, up=(64, 64), head=(1 << 14, 64))
    for kind in ("mean_abs_input", "fisher"):
        assert largest_stage(model, [kind], 8, 4096) > largest_stage(model, [kind], 8, 512)
        assert scratch_bytes(model, [kind], 64, 512) > scratch_bytes(model, [kind], 8, 512)
    assert largest_stage(model, ["fisher"], 256, 512) > largest_stage(model, ["fisher"], 8, 512)


def test_a_model_that_is_run_whole_holds_its_gradients_too() -> None:
    model = model_of({}, embed=(100, 10))
    assert largest_stage(model, ["mean_abs_input"]) == bytes_whole(model) == 4000
    assert largest_stage(model, ["fisher"]) == bytes_whole(model, ["fisher"]) == 20_000


@pytest.mark.parametrize("kind", ["fisher", "grad_weight"])
def test_gradients_take_longer_than_a_pass_forward(kind: str) -> None:
    model = model_of({}, up=(1 << 12, 1 << 12))
    assert seconds(model, [kind], 256, 512) > 4 * seconds(model, ["mean_abs_input"], 256, 512)
    assert seconds(model, ["gram"], 256, 512) > seconds(model, ["mean_abs_input"], 256, 512) > 0


def test_of_experts_only_those_that_are_chosen_take_time() -> None:
    shape = {"expert": (1 << 12, 1 << 12)}
    dense = seconds(model_of({}, **shape), ["mean_abs_input"], 256, 512)
    sparse = seconds(
        model_of({"num_experts_per_tok": 1, "num_experts": 8}, **shape), ["mean_abs_input"], 256, 512
    )
    assert sparse == pytest.approx(dense / 8, abs=1)
