"""Models of every architecture, as transformers saves them: their tensors are known, and merges load back."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel

from merge.arch.roles import Towers, place_of, role_of, tied_names, tower_and_layer
from merge.checkpoint.index import ModelIndex, index_folder
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests.merge import reference
from tests.merge.arch import zoo

BUDGET = 96 << 20

# For each architecture tensors whose class a reader of its code would name without thinking.
ROLES: Mapping[str, Mapping[str, str]] = {
    "llama": {"model.embed_tokens.weight": "embed", "lm_head.weight": "head", "model.norm.weight": "norm",
              "model.layers.1.mlp.gate_proj.weight": "linear",
              "model.layers.2.post_attention_layernorm.weight": "norm"},
    "mistral": {"model.layers.0.self_attn.k_proj.weight": "linear"},
    "qwen2": {"model.layers.0.self_attn.q_proj.bias": "bias"},
    "qwen3": {"model.layers.0.self_attn.q_norm.weight": "norm"},
    "gemma": {"model.norm.weight": "norm"},
    "gemma2": {"model.layers.0.pre_feedforward_layernorm.weight": "norm"},
    "gemma3_text": {"model.layers.0.self_attn.k_norm.weight": "norm"},
    "gemma3": {"multi_modal_projector.mm_input_projection_weight": "linear",
               "multi_modal_projector.mm_soft_emb_norm.weight": "norm",
               "vision_tower.embeddings.patch_embedding.weight": "conv",
               "vision_tower.embeddings.position_embedding.weight": "embed",
               "vision_tower.post_layernorm.bias": "norm"},
    "phi3": {"model.layers.0.mlp.gate_up_proj.weight": "linear",
             "model.layers.0.self_attn.qkv_proj.weight": "linear"},
    "gpt2": {"transformer.wpe.weight": "embed", "transformer.h.0.attn.c_attn.weight": "linear",
             "transformer.h.0.attn.c_attn.bias": "bias", "transformer.h.0.ln_1.bias": "norm"},
    "gpt_neox": {"embed_out.weight": "head", "gpt_neox.embed_in.weight": "embed",
                 "gpt_neox.layers.0.attention.query_key_value.bias": "bias",
                 "gpt_neox.final_layer_norm.bias": "norm"},
    "opt": {"model.decoder.embed_positions.weight": "embed", "model.decoder.final_layer_norm.weight": "norm",
            "model.decoder.layers.0.fc1.weight": "linear"},
    "mixtral": {"model.layers.0.block_sparse_moe.gate.weight": "router",
                "model.layers.0.block_sparse_moe.experts.3.w1.weight": "expert"},
    "qwen2_moe": {"model.layers.0.mlp.gate.weight": "router",
                  "model.layers.0.mlp.experts.0.up_proj.weight": "expert",
                  "model.layers.0.mlp.shared_expert.up_proj.weight": "linear",
                  "model.layers.0.mlp.shared_expert_gate.weight": "router"},
    "qwen3_moe": {"model.layers.0.mlp.gate.weight": "router",
                  "model.layers.0.mlp.experts.2.down_proj.weight": "expert"},
    "deepseek_v3": {"model.layers.1.mlp.gate.weight": "router",
                    "model.layers.1.mlp.gate.e_score_correction_bias": "router",
                    "model.layers.0.mlp.gate_proj.weight": "linear",
                    "model.layers.0.self_attn.kv_a_layernorm.weight": "norm"},
    "gpt_oss": {"model.layers.0.mlp.router.weight": "router", "model.layers.0.mlp.router.bias": "router",
                "model.layers.0.mlp.experts.gate_up_proj": "expert",
                "model.layers.0.mlp.experts.down_proj_bias": "expert",
                "model.layers.0.self_attn.sinks": "bias"},
    "t5": {"shared.weight": "embed", "decoder.block.2.layer.1.EncDecAttention.q.weight": "linear",
           "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "embed",
           "encoder.final_layer_norm.weight": "norm"},
    "bart": {"model.shared.weight": "embed", "final_logits_bias": "buffer",
             "model.encoder.layernorm_embedding.weight": "norm", "model.decoder.layers.0.fc2.bias": "bias"},
    "whisper": {"model.encoder.conv1.weight": "conv", "model.encoder.conv2.bias": "bias",
                "model.decoder.embed_tokens.weight": "embed", "model.encoder.layer_norm.weight": "norm"},
    "bert": {"bert.embeddings.word_embeddings.weight": "embed", "bert.embeddings.LayerNorm.bias": "norm",
             "cls.predictions.bias": "head", "cls.predictions.transform.dense.weight": "head",
             "cls.predictions.transform.LayerNorm.weight": "norm"},
    "roberta": {"roberta.embeddings.token_type_embeddings.weight": "embed", "lm_head.dense.weight": "head",
                "lm_head.layer_norm.weight": "norm", "lm_head.bias": "head"},
    "modernbert": {"model.embeddings.tok_embeddings.weight": "embed", "head.dense.weight": "head",
                   "head.norm.weight": "norm", "decoder.bias": "head",
                   "model.layers.1.attn_norm.weight": "norm"},
    "vit": {"vit.embeddings.cls_token": "embed", "vit.embeddings.position_embeddings": "embed",
            "vit.embeddings.patch_embeddings.projection.weight": "conv", "classifier.weight": "head",
            "vit.layernorm.weight": "norm"},
    "clip": {"text_projection.weight": "head", "visual_projection.weight": "head", "logit_scale": "bias",
             "vision_model.embeddings.class_embedding": "embed", "vision_model.pre_layrnorm.bias": "norm",
             "text_model.embeddings.token_embedding.weight": "embed"},
    "siglip": {"vision_model.head.probe": "head", "vision_model.head.attention.in_proj_weight": "head",
               "vision_model.head.layernorm.weight": "norm", "logit_bias": "bias"},
    "dinov2": {"dinov2.encoder.layer.0.layer_scale1.lambda1": "bias", "dinov2.embeddings.mask_token": "embed",
               "classifier.bias": "head"},
    "llava": {"multi_modal_projector.linear_1.weight": "linear", "language_model.lm_head.weight": "head",
              "vision_tower.pre_layrnorm.weight": "norm"},
    "qwen2_vl": {"visual.patch_embed.proj.weight": "conv", "visual.merger.ln_q.weight": "norm",
                 "visual.merger.mlp.0.weight": "linear", "visual.blocks.0.attn.qkv.bias": "bias"},
    "resnet": {"resnet.embedder.embedder.convolution.weight": "conv", "classifier.1.weight": "head",
               "resnet.embedder.embedder.normalization.weight": "norm",
               "resnet.embedder.embedder.normalization.running_var": "buffer",
               "resnet.encoder.stages.0.layers.0.shortcut.convolution.weight": "conv"},
    "mamba": {"backbone.embeddings.weight": "embed", "backbone.layers.0.mixer.A_log": "bias",
              "backbone.layers.0.mixer.conv1d.weight": "conv", "backbone.layers.0.mixer.D": "bias",
              "backbone.norm_f.weight": "norm", "backbone.layers.0.mixer.in_proj.weight": "linear"},
}  # fmt: skip
TOWERS: Mapping[str, Mapping[str, int]] = {
    "gemma3": {"language_model.model.layers": 3, "vision_tower.encoder.layers": 3},
    "gpt2": {"transformer.h": 3},
    "t5": {"encoder.block": 3, "decoder.block": 3},
    "whisper": {"model.encoder.layers": 3, "model.decoder.layers": 3},
    "vit": {"vit.encoder.layer": 3},
    "clip": {"text_model.encoder.layers": 3, "vision_model.encoder.layers": 3},
    "qwen2_vl": {"model.layers": 3, "visual.blocks": 3},
    "resnet": {"resnet.encoder.stages": 2},
    "mamba": {"backbone.layers": 3},
}
FIRST_AND_LAST: Mapping[str, tuple[str, str]] = {
    "llama": ("model.embed_tokens.weight", "model.norm.weight"),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    "bart": ("model.encoder.layernorm_embedding.weight", "final_logits_bias"),
    "whisper": ("model.encoder.conv1.weight", "model.decoder.layer_norm.weight"),
    "bert": ("bert.embeddings.LayerNorm.weight", "cls.predictions.transform.dense.bias"),
    "modernbert": ("model.embeddings.norm.weight", "decoder.bias"),
    "clip": ("vision_model.pre_layrnorm.weight", "vision_model.post_layernorm.weight"),
    "llava": ("multi_modal_projector.linear_2.bias", "language_model.model.norm.weight"),
    "resnet": ("resnet.embedder.embedder.normalization.bias", "classifier.1.bias"),
    "mamba": ("backbone.embeddings.weight", "backbone.norm_f.weight"),
}
BASE_AND_TWO = ("llama", "gpt2", "qwen3_moe", "t5", "vit")


@dataclass
class Pair:
    """Two saved models of one architecture."""

    folders: Mapping[str, Path]
    indices: Mapping[str, ModelIndex]
    model: PreTrainedModel


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    root = tmp_path_factory.mktemp("zoo")
    transformers.utils.logging.disable_progress_bar()
    found = {}
    for name in zoo.ZOO:
        folders = {key: root / name / key for key in "ab"}
        model = zoo.save(name, 0, folders["a"])
        zoo.save(name, 1, folders["b"])
        found[name] = Pair(
            folders, {key: index_folder(folder, key) for key, folder in folders.items()}, model
        )
    yield found
    transformers.utils.logging.enable_progress_bar()


def merged(pair: Pair, out: Path, steps: list[dict[str, Any]], **more: Any) -> Path:
    sources = [{"id": key, "model": key} for key in pair.indices if key != "base"]
    recipe = recipe_from({"sources": sources, "steps": steps, **more})
    plan = make_plan(recipe, pair.indices, budget=BUDGET)
    run(plan, pair.folders, out, budget_bytes=BUDGET, threads=1)
    return out


def assert_loads(name: str, folder: Path) -> dict[str, torch.Tensor]:
    model, told = zoo.load(name, folder)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return dict(model.state_dict())


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_tensor_has_its_class(pairs: dict[str, Pair], name: str) -> None:
    index = pairs[name].indices["a"]
    found = {key: role_of(key, info.shape, index.config, info.dtype) for key, info in index.tensors.items()}
    assert {key: found[key] for key in ROLES[name]} == ROLES[name]
    modules = dict(pairs[name].model.named_modules())
    buffers = {path for path, _ in pairs[name].model.named_buffers()}
    for key, role in found.items():
        path, _, leaf = key.rpartition(".")
        module = modules.get(path)
        if key in buffers and role != "router":
            assert role == "buffer", key
        elif isinstance(module, torch.nn.Embedding):
            assert role == "embed", key
        elif module is not None and "Norm" in type(module).__name__:
            assert role == "norm", key
        elif isinstance(module, torch.nn.Linear) and leaf == "weight":
            assert role in ("linear", "head", "router", "expert"), key


@pytest.mark.parametrize("name", TOWERS)
def test_towers_are_found(pairs: dict[str, Pair], name: str) -> None:
    assert Towers.of(pairs[name].indices["a"].tensors).lengths == TOWERS[name]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_depth_runs_from_the_embedding_to_the_head(pairs: dict[str, Pair], name: str) -> None:
    index = pairs[name].indices["a"]
    towers = Towers.of(index.tensors)
    assert towers.lengths
    for key, info in index.tensors.items():
        role = role_of(key, info.shape, index.config, info.dtype)
        found = tower_and_layer(key)
        expected = {"before": 0.0, "after": 1.0, "inside": -1.0}[place_of(key, role)]
        if found is not None:
            expected = found[1] / (towers.lengths[found[0]] - 1)
        assert towers.depth(key, role) == expected
        assert role != "head" or expected == 1.0
        assert role != "embed" or found is not None or expected == 0.0


@pytest.mark.parametrize("name", FIRST_AND_LAST)
def test_what_lies_outside_the_layers_has_its_side(pairs: dict[str, Pair], name: str) -> None:
    index = pairs[name].indices["a"]
    sides = [
        place_of(key, role_of(key, index.tensors[key].shape, index.config)) for key in FIRST_AND_LAST[name]
    ]
    assert sides == ["before", "before" if name == "bart" else "after"]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_ties_are_those_of_transformers(pairs: dict[str, Pair], name: str) -> None:
    """Told the names of both sides, as older files store them; what transformers writes has one side only."""
    pair = pairs[name]
    tied = dict(pair.model.all_tied_weights_keys)
    every = list(pair.model.state_dict())
    assert tied_names(json.loads((pair.folders["a"] / "config.json").read_text()), every) == tied
    assert tied_names(pair.indices["a"].config, pair.indices["a"].tensors) == {}


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_linear_merge_loads_in_transformers_and_is_the_mean(
    pairs: dict[str, Pair], tmp_path: Path, name: str
) -> None:
    out = merged(pairs[name], tmp_path / "out", [{"method": "linear"}])
    found = assert_loads(name, out)
    first, second = (assert_loads(name, pairs[name].folders[key]) for key in "ab")
    for key, value in found.items():
        wanted = (first[key] + second[key]) / 2 if value.is_floating_point() else first[key]
        assert torch.allclose(value, wanted, atol=1e-6), key


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_slerp_loads_in_transformers_and_is_the_arc(
    pairs: dict[str, Pair], tmp_path: Path, name: str
) -> None:
    pair = pairs[name]
    out = merged(pair, tmp_path / "out", [{"method": "slerp", "t": 0.25}])
    assert_loads(name, out)
    made, first, second = (load_file(f / "model.safetensors") for f in (out, *pair.folders.values()))
    assert made.keys() == first.keys()
    for key, value in made.items():
        role = role_of(key, tuple(value.shape), pair.indices["a"].config)
        if role in ("linear", "expert", "conv") and value.numel() > 1:
            wanted = reference.slerp(first[key].double().numpy(), second[key].double().numpy(), 0.25)
            assert np.allclose(value.double().numpy(), wanted, atol=1e-5), key


@pytest.mark.parametrize("name", BASE_AND_TWO)
def test_a_ties_merge_loads_in_transformers(pairs: dict[str, Pair], tmp_path: Path, name: str) -> None:
    zoo.save(name, 2, tmp_path / "base")
    pair = pairs[name]
    three = Pair(
        {"base": tmp_path / "base", **pair.folders},
        {"base": index_folder(tmp_path / "base", "base"), **pair.indices},
        pair.model,
    )
    out = merged(three, tmp_path / "out", [{"method": "ties", "density": 0.5}], base="base")
    assert_loads(name, out)
    made, *files = (load_file(f / "model.safetensors") for f in (out, *three.folders.values()))
    key = max(made, key=lambda name: made[name].numel())
    base, first, second = (file[key].double().numpy() for file in files)
    wanted = reference.ties(base, [first, second], [1.0, 1.0], 0.5)
    assert np.allclose(made[key].double().numpy(), wanted, atol=1e-5)


def test_a_tied_head_stored_twice_is_written_once_and_loads_equal(
    pairs: dict[str, Pair], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    pair = pairs["bert"]
    folders = {}
    for key, folder in pair.folders.items():
        tensors = load_file(folder / "model.safetensors")
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        folders[key] = tmp_path / key
        folders[key].mkdir()
        save_file(tensors, folders[key] / "model.safetensors", {"format": "pt"})
        (folders[key] / "config.json").write_bytes((folder / "config.json").read_bytes())
    both = Pair(folders, {key: index_folder(folder, key) for key, folder in folders.items()}, pair.model)
    out = merged(both, tmp_path / "out", [{"method": "linear"}])
    written = load_file(out / "model.safetensors")
    assert written.keys() == load_file(pair.folders["a"] / "model.safetensors").keys()
    state = assert_loads("bert", out)
    assert torch.equal(
        state["cls.predictions.decoder.weight"], state["bert.embeddings.word_embeddings.weight"]
    )
