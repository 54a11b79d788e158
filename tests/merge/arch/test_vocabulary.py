"""Which tensors have a row for each token, told from names, shapes and config."""

from typing import Any

import pytest

from merge.arch.vocabulary import vocabulary_tensors

CASES: list[tuple[str, dict[str, tuple[int, ...]], dict[str, Any], dict[str, str]]] = [
    (
        "llama",
        {"model.embed_tokens.weight": (90, 16), "lm_head.weight": (90, 16), "model.norm.weight": (16,),
         "model.layers.0.mlp.up_proj.weight": (90, 16)},
        {"vocab_size": 90, "hidden_size": 16},
        {"model.embed_tokens.weight": "embed", "lm_head.weight": "head"},
    ),
    (
        "gpt2, positions as many as tokens",
        {"transformer.wte.weight": (64, 16), "transformer.wpe.weight": (64, 16),
         "transformer.h.0.mlp.c_fc.weight": (64, 16), "transformer.ln_f.weight": (64,)},
        {"vocab_size": 64, "n_positions": 64, "n_embd": 16},
        {"transformer.wte.weight": "embed"},
    ),
    (
        "bert with a masked head",
        {"bert.embeddings.word_embeddings.weight": (90, 16),
         "bert.embeddings.token_type_embeddings.weight": (2, 16),
         "bert.embeddings.position_embeddings.weight": (90, 16), "cls.predictions.bias": (90,),
         "cls.predictions.decoder.weight": (90, 16), "cls.predictions.decoder.bias": (90,),
         "bert.pooler.dense.weight": (16, 16)},
        {"vocab_size": 90, "max_position_embeddings": 90},
        {"bert.embeddings.word_embeddings.weight": "embed", "cls.predictions.bias": "head",
         "cls.predictions.decoder.weight": "head", "cls.predictions.decoder.bias": "head"},
    ),
    (
        "a vision language model: the text tower only",
        {"model.language_model.embed_tokens.weight": (90, 16), "lm_head.weight": (90, 16),
         "model.visual.patch_embed.proj.weight": (90, 3, 4, 4), "model.visual.pos_embed.weight": (90, 16),
         "model.vision_tower.embeddings.weight": (90, 16)},
        {"text_config": {"vocab_size": 90}, "vision_config": {"vocab_size": 50}},
        {"model.language_model.embed_tokens.weight": "embed", "lm_head.weight": "head"},
    ),
    (
        "t5: three names of one embedding",
        {"shared.weight": (90, 16), "encoder.embed_tokens.weight": (90, 16),
         "decoder.embed_tokens.weight": (90, 16), "lm_head.weight": (90, 16),
         "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (90, 4)},
        {"vocab_size": 90},
        {"shared.weight": "embed", "encoder.embed_tokens.weight": "embed",
         "decoder.embed_tokens.weight": "embed", "lm_head.weight": "head"},
    ),
    (
        "a config that does not say",
        {"backbone.embeddings.weight": (90, 16), "backbone.norm_f.weight": (16,)},
        {},
        {"backbone.embeddings.weight": "embed"},
    ),
    (
        "a classifier of as many labels",
        {"model.embed_tokens.weight": (90, 16), "score.weight": (90, 16)},
        {"vocab_size": 90},
        {"model.embed_tokens.weight": "embed"},
    ),
    (
        "gpt, the first",
        {"transformer.tokens_embed.weight": (90, 16), "transformer.positions_embed.weight": (32, 16)},
        {"vocab_size": 90},
        {"transformer.tokens_embed.weight": "embed"},
    ),
    (
        "ctrl",
        {"transformer.w.weight": (90, 16), "lm_head.bias": (90,)},
        {"vocab_size": 90},
        {"transformer.w.weight": "embed", "lm_head.bias": "head"},
    ),
    (
        "a model that is called after a norm, and one that sees",
        {"roberta_prelayernorm.embeddings.word_embeddings.weight": (90, 16), "lm_head.bias": (90,),
         "visual_bert.embeddings.word_embeddings.weight": (90, 16),
         "visual_bert.embeddings.visual_token_type_embeddings.weight": (90, 16)},
        {"vocab_size": 90},
        {"roberta_prelayernorm.embeddings.word_embeddings.weight": "embed", "lm_head.bias": "head",
         "visual_bert.embeddings.word_embeddings.weight": "embed"},
    ),
    (
        "another embedding by token, of another size",
        {"model.embed_tokens.weight": (90, 16), "model.embed_tokens_per_layer.weight": (80, 8)},
        {"vocab_size": 90, "vocab_size_per_layer_input": 80},
        {"model.embed_tokens.weight": "embed"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes", "config", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_the_tensors_by_token(
    name: str, shapes: dict[str, tuple[int, ...]], config: dict[str, Any], wanted: dict[str, str]
) -> None:
    found = vocabulary_tensors(shapes, config)
    assert found is not None
    assert dict(found.tensors) == wanted
    assert found.rows == next(shape[0] for tensor, shape in shapes.items() if tensor in wanted)


def test_what_knows_tokens_by_their_ids_but_has_no_row_for_each() -> None:
    def fixed(shapes: dict[str, tuple[int, ...]], **config: Any) -> dict[str, int | None]:
        found = vocabulary_tensors({"model.embed_tokens.weight": (98, 16), **shapes}, config)
        assert found is not None
        return dict(found.fixed)

    assert fixed({"lm_head.weight": (90, 16)}, vocab_size=90) == {"lm_head.weight": None}
    assert fixed({"lm_head.weight": (90, 16)}, vocab_size=98, decoder={"vocab_size": 90}) == {}
    columns = {"cls.predictions.dense.weight": (8, 98)}
    assert fixed(columns, vocab_size=98) == {"cls.predictions.dense.weight": None}
    layer = {"model.layers.0.mlp.gate.tid2eid": (98, 2)}
    assert fixed(layer, vocab_size=98) == {"model.layers.0.mlp.gate.tid2eid": None}
    fewer = {"model.embed_tokens_per_layer.weight": (90, 8)}
    assert fixed(fewer, vocab_size=98) == {"model.embed_tokens_per_layer.weight": 90}
    decoder = {"model.decoder.embed_tokens.weight": (80, 16)}
    found = fixed(decoder, vocab_size=98, decoder_vocab_size=80)
    assert found == {"model.decoder.embed_tokens.weight": 80}


def test_a_model_without_tokens_has_none() -> None:
    shapes = {"vit.embeddings.cls_token": (1, 1, 16), "classifier.weight": (3, 16)}
    assert vocabulary_tensors(shapes, {"hidden_size": 16}) is None
