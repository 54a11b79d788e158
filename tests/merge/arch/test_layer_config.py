"""The config of a model with other layers: counted anew, and each layer what it was."""

import json
from typing import Any

import pytest
import transformers

from merge.arch.layer_config import Recut, recut

GROWN = [0, 1, 2, 1, 2, 3]


def cut(config: dict[str, Any], tower: str = "model.layers", layers: list[int] | None = None) -> Recut:
    return recut(config, tower, [(config, layer) for layer in layers or GROWN])


def of(name: str, **settings: Any) -> dict[str, Any]:
    """What ``save_pretrained`` writes of a config."""
    made: dict[str, Any] = json.loads(getattr(transformers, name)(**settings).to_json_string(use_diff=False))
    return made


def accepted(name: str, config: dict[str, Any]) -> Any:
    return getattr(transformers, name)(**config)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
def test_layers_are_counted_under_the_name_that_the_config_has(key: str) -> None:
    assert cut({key: 4, "hidden_size": 8}).config == {key: 6, "hidden_size": 8}


def test_qwen3_keeps_one_type_a_layer_and_is_accepted() -> None:
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    made = cut(of("Qwen3Config", num_hidden_layers=4, layer_types=types, use_sliding_window=True)).config
    assert made["layer_types"] == [types[layer] for layer in GROWN]
    assert accepted("Qwen3Config", made).num_hidden_layers == 6


def test_gemma3_is_cut_inside_its_text_config_and_is_accepted() -> None:
    config = of("Gemma3Config", text_config={"num_hidden_layers": 8}, vision_config={"num_hidden_layers": 8})
    made = cut(config, "model.language_model.layers", [0, 1, 5, 5, 6]).config
    full = [kind == "full_attention" for kind in made["text_config"]["layer_types"]]
    assert full == [False, False, True, True, False]
    assert made["vision_config"]["num_hidden_layers"] == 8
    assert accepted("Gemma3Config", made).text_config.num_hidden_layers == 5
    seen = cut(config, "model.vision_tower.encoder.layers", [0, 1]).config
    assert (seen["vision_config"]["num_hidden_layers"], seen["text_config"]["num_hidden_layers"]) == (2, 8)


def test_a_pattern_that_is_only_a_rule_is_written_out_for_the_layers_there_are() -> None:
    config = {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 512}
    made = cut(config, layers=[4, 5, 0]).config
    assert made["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]


def test_each_layer_has_what_its_own_models_config_says_of_it() -> None:
    ours = {"num_hidden_layers": 2, "layer_types": ["a", "b"], "mlp_only_layers": [0]}
    theirs = {"num_hidden_layers": 3, "layer_types": ["c", "d", "e"], "mlp_only_layers": [1, 2]}
    made = recut(ours, "model.layers", [(theirs, 2), (ours, 1), (ours, 0), (theirs, 0)]).config
    assert made == {"num_hidden_layers": 4, "layer_types": ["e", "b", "a", "c"], "mlp_only_layers": [0, 2]}


def test_layers_that_are_listed_by_number_are_counted_anew_also_beside_a_config_that_lists_none() -> None:
    ours = {"num_hidden_layers": 2, "mlp_only_layers": [0], "moe_layers": [0, 1]}
    theirs = {"num_hidden_layers": 2, "mlp_only_layers": None, "moe_layers": [1]}
    made = recut(ours, "model.layers", [(theirs, 0), (ours, 0), (theirs, 1)]).config
    assert made == {"num_hidden_layers": 3, "mlp_only_layers": [1], "moe_layers": [1, 2]}


def test_a_word_of_one_letter_a_layer_is_a_list_too() -> None:
    made = cut({"num_hidden_layers": 4, "hybrid_override_pattern": "M*-E"}).config
    assert made["hybrid_override_pattern"] == "M*-*-E"


def test_lists_that_are_as_long_by_chance_stay() -> None:
    config = {"num_hidden_layers": 4, "eos_token_id": [1, 2, 3, 4], "mrope_section": [1, 1, 1, 1],
              "out_indices": [4]}  # fmt: skip
    assert cut(config).config == {**config, "num_hidden_layers": 6}


@pytest.mark.parametrize(
    ("tower", "counts"),
    [("encoder.block", (6, 4)), ("decoder.block", (4, 6))],
)
def test_encoder_and_decoder_of_t5_are_counted_apart(tower: str, counts: tuple[int, int]) -> None:
    for decoder in ({}, {"num_decoder_layers": 4}, {"num_decoder_layers": None}):
        config = {"model_type": "t5", "is_encoder_decoder": True, "num_layers": 4, **decoder}
        made = accepted("T5Config", cut(config, tower).config)
        assert (made.num_layers, made.num_decoder_layers) == counts


@pytest.mark.parametrize(
    ("tower", "counts"),
    [("model.encoder.layers", (6, 4)), ("model.decoder.layers", (4, 6))],
)
def test_encoder_and_decoder_of_whisper_are_counted_apart(tower: str, counts: tuple[int, int]) -> None:
    made = cut(of("WhisperConfig", encoder_layers=4, decoder_layers=4), tower).config
    assert (made["encoder_layers"], made["decoder_layers"]) == counts


def test_a_rule_that_counts_from_the_first_layer_is_remarked_where_layers_moved() -> None:
    config = {"num_hidden_layers": 4, "first_k_dense_replace": 1, "moe_layer_freq": 1}
    (remark,) = cut(config).remarks
    assert "first_k_dense_replace (1)" in remark
    assert cut(config, layers=[0, 1, 2]).remarks == ()


def test_a_config_that_counts_nothing_says_so() -> None:
    assert cut({"hidden_size": 8}).unstated
    assert not cut({}).unstated
