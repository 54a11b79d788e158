"""Token ids in configs move with their tokens; everything else stays."""

from array import array

from merge.tokenizer.special import ends_of, lost_ids, with_vocabulary

OWN = array("i", [3, 1, -1, 0])
"""Row 0 of the result was token 3, row 1 token 1, row 3 token 0; token 2 is gone."""


def test_ids_sizes_and_lists_move_wherever_they_stand() -> None:
    config = {
        "vocab_size": 4, "hidden_size": 4, "bos_token_id": 0, "eos_token_id": [3, 2], "pad_token_id": 2,
        "text_config": {"vocab_size": 4, "eos_token_id": 3, "token_dim": 3}, "image_token_index": 1,
        "vision_config": {"vocab_size": 4, "eos_token_id": 3}, "audio": {"vocab_size": 9},
        "begin_suppress_tokens": [0, 1], "cls_token_id": None, "sep_token_id": -1, "forced_bos_token_id": 3,
    }  # fmt: skip
    assert with_vocabulary(config, 8, 4, OWN, {}) == {
        "vocab_size": 8, "hidden_size": 4, "bos_token_id": 3, "eos_token_id": [0], "pad_token_id": None,
        "text_config": {"vocab_size": 8, "eos_token_id": 0, "token_dim": 3}, "image_token_index": 1,
        "vision_config": {"vocab_size": 4, "eos_token_id": 3}, "audio": {"vocab_size": 9},
        "begin_suppress_tokens": [3, 1], "cls_token_id": None, "sep_token_id": -1, "forced_bos_token_id": 0,
    }  # fmt: skip
    banned = {"bad_words_ids": [[0, 1], [0, 2], [3]], "suppress_tokens": []}
    assert with_vocabulary(banned, 8, 4, OWN, {}) == {"bad_words_ids": [[3, 1], [0]], "suppress_tokens": []}
    assert with_vocabulary({"bad_words_ids": [[2]]}, 8, 4, OWN, {}) == {"bad_words_ids": None}
    assert list(lost_ids(config, 4, OWN)) == [("eos_token_id", 2), ("pad_token_id", 2)]


def test_sizes_and_ids_by_older_and_other_names_move_too() -> None:
    config = {
        "n_words": 4, "decoder_vocab_size": 4, "vocab_size_per_layer_input": 4, "type_vocab_size": 4,
        "pad_index": 1, "mask_index": 3, "force_words_ids": [[3, 1]],
        "lang_to_id": {"<|en|>": 3, "<|de|>": 2}, "task_to_id": {"transcribe": 0},
        "text_config": {"vocab_size_per_layer_input": 3},
    }  # fmt: skip
    assert with_vocabulary(config, 8, 4, OWN, {}) == {
        "n_words": 8, "decoder_vocab_size": 8, "vocab_size_per_layer_input": 8, "type_vocab_size": 4,
        "pad_index": 1, "mask_index": 0, "force_words_ids": [[0, 1]],
        "lang_to_id": {"<|en|>": 0}, "task_to_id": {"transcribe": 3},
        "text_config": {"vocab_size_per_layer_input": 3},
    }  # fmt: skip


def test_ids_of_another_vocabulary_stay() -> None:
    """A model that speaks has tokens for sounds too."""
    config = {
        "codebook_eos_token_id": 0, "t2u_pad_token_id": 3,
        "decoder": {"vocab_size": 9, "pad_token_id": 0, "bos_token_id": 2},
    }  # fmt: skip
    assert with_vocabulary(config, 8, 4, OWN, {"bos_token_id": 5}) == config
    assert list(lost_ids(config, 4, OWN)) == []


def test_another_models_ends_are_taken_as_they_are() -> None:
    ends = ends_of({"text_config": {"eos_token_id": 7}, "bos_token_id": 5, "pad_token_id": None})
    assert ends == {"eos_token_id": 7, "bos_token_id": 5}
    made = with_vocabulary({"eos_token_id": 3, "pad_token_id": 1}, 4, 4, OWN, ends)
    assert made == {"eos_token_id": 7, "pad_token_id": 1}
