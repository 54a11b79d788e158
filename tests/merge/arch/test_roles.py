"""What a tensor is can be read off its name, for architectures nobody has listed."""

from pathlib import Path

import pytest

from merge.arch.roles import (
    Towers,
    is_conv1d,
    is_turned,
    layer_of,
    place_of,
    role_of,
    stack_of,
    tied_names,
    tower_and_layer,
)
from merge.checkpoint.index import index_folder
from tests import tiny

ROLES = [
    ("model.embed_tokens.weight", (9, 4), "embed"),
    ("transformer.wpe.weight", (9, 4), "embed"),
    ("bert.embeddings.word_embeddings.weight", (9, 4), "embed"),
    ("vit.embeddings.cls_token", (1, 1, 4), "embed"),
    ("shared.weight", (9, 4), "embed"),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (9, 4), "embed"),
    ("lm_head.weight", (9, 4), "head"),
    ("classifier.bias", (3,), "head"),
    ("score.weight", (3, 4), "head"),
    ("model.norm.weight", (4,), "norm"),
    ("transformer.h.0.ln_1.bias", (4,), "norm"),
    ("bert.embeddings.LayerNorm.weight", (4,), "norm"),
    ("model.layers.1.self_attn.q_norm.weight", (4,), "norm"),
    ("vit.encoder.layer.0.layernorm_before.bias", (4,), "norm"),
    ("model.layers.0.self_attn.q_proj.bias", (4,), "bias"),
    ("model.layers.0.self_attention.experts.router.layer.weight", (4, 8), "router"),
    ("model.layers.0.mlp.moe_statics.e_score_correction_bias", (2, 4), "router"),
    ("model.layers.0.block_sparse_moe.e_score_correction_bias", (4,), "router"),
    ("model.layers.0.mlp.gate.weight_1", (8, 4), "router"),
    ("transformer.h.0.attn.c_attn.bias", (12,), "bias"),
    ("model.layers.0.mlp.gate_proj.weight", (8, 4), "linear"),
    ("model.layers.0.self_attn.o_proj.weight", (4, 4), "linear"),
    ("vit.embeddings.patch_embeddings.projection.weight", (4, 3, 2, 2), "conv"),
    ("features.0.conv.weight", (4, 3, 3, 3), "conv"),
    ("model.layers.0.block_sparse_moe.gate.weight", (8, 4), "router"),
    ("model.layers.0.mlp.gate.weight", (8, 4), "router"),
    ("model.layers.0.block_sparse_moe.experts.3.w1.weight", (8, 4), "expert"),
    ("model.layers.0.mlp.experts.gate_up_proj", (4, 8, 4), "expert"),
    ("transformer.h.0.attn.bias", (1, 1, 8, 8), "buffer"),
    ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,), "buffer"),
    ("bert.embeddings.position_ids", (1, 8), "buffer"),
]


@pytest.mark.parametrize(("name", "shape", "role"), ROLES)
def test_a_name_tells_the_class(name: str, shape: tuple[int, ...], role: str) -> None:
    assert role_of(name, shape, {}) == role


def test_an_integer_tensor_is_a_buffer_whatever_its_name() -> None:
    assert role_of("model.layers.0.mlp.up_proj.weight", (4, 4), {}, "I64") == "buffer"


@pytest.mark.parametrize(
    ("name", "tower", "layer"),
    [
        ("model.layers.12.mlp.up_proj.weight", "model.layers", 12),
        ("h.3.attn.c_attn.bias", "h", 3),
        ("model.visual.blocks.7.attn.qkv.weight", "model.visual.blocks", 7),
        ("decoder.block.2.layer.1.EncDecAttention.q.weight", "decoder.block", 2),
        ("model.layers.5.block_sparse_moe.experts.3.w1.weight", "model.layers", 5),
    ],
)
def test_the_outermost_list_is_the_layer(name: str, tower: str, layer: int) -> None:
    assert tower_and_layer(name) == (tower, layer)
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "classifier.0.weight", "model.norm.weight", "layers.weight"]
)
def test_outside_the_layers_there_is_no_layer(name: str) -> None:
    assert layer_of(name) is None


def test_each_tower_has_its_own_depth() -> None:
    names = [f"text.layers.{n}.w.weight" for n in range(5)] + [
        f"vision.blocks.{n}.w.weight" for n in range(3)
    ]
    towers = Towers.of([*names, "one.layers.0.w.weight"])
    assert towers.depth("text.layers.2.w.weight", "linear") == 0.5
    assert towers.depth("vision.blocks.2.w.weight", "linear") == 1.0
    assert towers.depth("one.layers.0.w.weight", "linear") == 1.0


@pytest.mark.parametrize(
    ("name", "role", "place"),
    [
        ("model.embed_tokens.weight", "embed", "before"), ("lm_head.weight", "head", "after"),
        ("model.norm.weight", "norm", "after"), ("transformer.ln_f.weight", "norm", "after"),
        ("bert.embeddings.LayerNorm.weight", "norm", "before"), ("vit.layernorm.bias", "norm", "after"),
        ("model.layers.0.w.weight", "linear", "inside"),
        ("vit.embeddings.patch_embeddings.projection.bias", "bias", "before"),
    ],
)  # fmt: skip
def test_tensors_outside_the_layers_have_a_place(name: str, role: str, place: str) -> None:
    assert place_of(name, role) == place  # type: ignore[arg-type]
    towers = Towers.of(["model.layers.0.w.weight", "model.layers.1.w.weight"])
    assert towers.depth(name, role) == (1.0 if place == "after" else 0.0)  # type: ignore[arg-type]
    assert towers.depth(name, role, "zero") == 0.0  # type: ignore[arg-type]


def test_a_stored_tied_head_is_the_embedding_and_an_untied_one_is_not(tmp_path: Path) -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.w.weight", "lm_head.weight"]
    assert tied_names({"tie_word_embeddings": True}, names) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert tied_names({"text_config": {"tie_word_embeddings": True}}, names) != {}
    assert tied_names({"tie_word_embeddings": False}, names) == {}
    assert tied_names({"model_type": "gpt2"}, ["wte.weight", "lm_head.weight"]) == {
        "lm_head.weight": "wte.weight"
    }
    tied = index_folder(tiny.llama(tmp_path, tied=True))
    assert tied_names(tied.config, tied.tensors) == {}


def test_every_tensor_of_the_tiny_models_has_a_plausible_class(tmp_path: Path) -> None:
    index = index_folder(tiny.moe(tmp_path))
    roles = [role_of(name, info.shape, index.config) for name, info in index.tensors.items()]
    counts = {role: roles.count(role) for role in set(roles)}
    assert counts == {"embed": 1, "head": 1, "norm": 5, "linear": 8, "router": 2, "expert": 24}


def test_conv1d_is_known_by_model_and_module() -> None:
    assert is_conv1d("transformer.h.0.attn.c_attn.weight", {"model_type": "gpt2"})
    assert not is_conv1d("transformer.h.0.attn.c_attn.weight", {"model_type": "llama"})
    assert not is_conv1d("transformer.wte.weight", {"model_type": "gpt2"})


@pytest.mark.parametrize("side", ["in_out", "out_in"])
def test_stacks_of_experts_are_turned_where_their_family_stores_them_so(side: str) -> None:
    """(experts, in, out): a width of 8, experts 6 wide. Where both are one, the family decides."""
    config = {"model_type": "qwen3_vl_moe", "text_config": {"hidden_size": 8}}
    into, back = ((4, 8, 12), (4, 6, 8)) if side == "in_out" else ((4, 12, 8), (4, 8, 6))
    experts = "model.language_model.layers.0.mlp.experts"
    assert is_turned(f"{experts}.gate_up_proj", into, config) == (side == "in_out")
    assert is_turned(f"{experts}.down_proj", back, config) == (side == "in_out")
    assert is_turned(f"{experts}.down_proj", (4, 8, 8), {"model_type": "gpt_oss", "hidden_size": 8})
    assert not is_turned(f"{experts}.down_proj", (4, 6, 8), {"model_type": "qwen3_5_moe", "hidden_size": 8})
    assert not is_turned(f"{experts}.gate_up_proj_bias", (4, 12), {"model_type": "gpt_oss"})
    privacy = {"model_type": "openai_privacy_filter", "hidden_size": 8}
    assert is_turned("model.layers.0.mlp.experts.gate_up_proj", (4, 8, 12), privacy)


def test_experts_of_dbrx_are_a_stack_in_one_matrix() -> None:
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 4}}
    experts = "transformer.blocks.0.ffn.experts.mlp"
    assert stack_of(f"{experts}.v1", (24, 8), config) == (4, 6, 8)
    assert is_turned(f"{experts}.w2", (24, 8), config) and not is_turned(f"{experts}.w1", (24, 8), config)
    assert stack_of(f"{experts}.w1", (23, 8), config) == ()
    assert stack_of("transformer.blocks.0.ffn.router.layer.weight", (4, 8), config) == ()


def test_routers_of_ernie_vl_are_turned() -> None:
    """(width, experts) of texts and of pictures; those of ERNIE's other mixtures are (experts, width)."""
    config, gate = {"model_type": "ernie4_5_vl_moe"}, "model.layers.0.mlp.gate.weight"
    assert is_turned(gate, (8, 4), config) and is_turned(f"{gate}_1", (8, 4), config)
    assert not is_turned("model.layers.0.mlp.up_proj.weight", (8, 8), config)
    assert not is_turned(gate, (4, 8), {"model_type": "ernie4_5_moe"})
