"""What a plan says a measurement will take; what it takes is measured in ``test_memory.py``."""

from typing import Any

import pytest

from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.learn.forecast import bytes_whole, largest_stage, scratch_bytes, seconds


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
