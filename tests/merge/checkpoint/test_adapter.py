"""A LoRA applied block by block is the dense W + scale * B A, and what cannot be exact is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import errors, file_errors
from merge.checkpoint import reader as reading
from merge.checkpoint.adapter import NAMES, ROWS, LoraPair
from merge.checkpoint.index import attach, index_adapter, index_adapter_folder, index_folder
from merge.checkpoint.reader import TensorReader
from tests import tiny

Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.1.self_attn.k_proj"
DOWN = "model.layers.0.mlp.down_proj"
SHAPES = {Q: (16, 16), K: (8, 16), DOWN: (16, 32)}


def apply(
    model: Path, adapter: Path, name: str, dtype: torch.dtype = torch.float32, block: int = 10**9
) -> torch.Tensor:
    index = attach(index_folder(model), index_adapter_folder(adapter))
    info = index.tensors[name]
    out = torch.empty(info.numel, dtype=dtype)
    with TensorReader(model, index, adapter) as reader:
        for first in range(0, info.numel, block):
            size = min(block, info.numel - first)
            reader.read_float(name, first, size, out[first : first + size])
    return out.view(info.shape)


def dense(model: Path, adapter: Path, module: str, scale: float, turned: bool = False) -> torch.Tensor:
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{module}.lora_{part}.weight"].double() for part in "AB")
    delta = b @ a * scale
    return load_file(model / "model.safetensors")[f"{module}.weight"].double() + (
        delta.T if turned else delta
    )


def pair_of(model: Path, adapter: Path, name: str) -> LoraPair:
    fitted = attach(index_folder(model), index_adapter_folder(adapter)).adapter
    assert fitted is not None
    return fitted.pairs[name]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.llama(tmp_path / "base")


@pytest.mark.parametrize("module", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_is_the_dense_product(
    tmp_path: Path, model: Path, module: str, dtype: torch.dtype
) -> None:
    adapter = tiny.lora(tmp_path / "lora", SHAPES, r=4, alpha=12, dtype=dtype)
    expected = dense(model, adapter, module, 12 / 4)
    assert torch.allclose(apply(model, adapter, f"{module}.weight").double(), expected, rtol=0, atol=1e-6)
    exact = apply(model, adapter, f"{module}.weight", torch.float64)
    assert torch.allclose(exact, expected, rtol=0, atol=1e-14)


def test_pieces_of_a_tensor_are_its_rows(tmp_path: Path, model: Path) -> None:
    """Where Transformers splits what the files have as one; the alpha of each is its own."""
    adapter = tiny.lora(tmp_path / "lora", {"top": (10, 16), "low": (6, 16)}, alpha_pattern={"low": 16})
    file = adapter / "adapter_model.safetensors"
    tensors, names = load_file(file), {f"{each}.weight": f"{Q}.weight" for each in ("low", "top")}
    for second, fits in ((10, True), (9, False), (0, False)):
        rows = json.dumps({"top.weight": 0, "low.weight": second})
        save_file(tensors, file, {NAMES: json.dumps(names), ROWS: rows})
        if not fits:
            with pytest.raises(errors.AdapterMismatch, match="is no piece of"):
                pair_of(model, adapter, f"{Q}.weight")
            continue
        assert pair_of(model, adapter, f"{Q}.weight").rank == 8
        stem = "base_model.model"
        top, low = (
            tensors[f"{stem}.{each}.lora_B.weight"].double()
            @ tensors[f"{stem}.{each}.lora_A.weight"].double()
            for each in ("top", "low")
        )
        changed = apply(model, adapter, f"{Q}.weight", torch.float64)
        before = load_file(model / "model.safetensors")[f"{Q}.weight"].double()
        assert torch.allclose(changed - before, torch.cat([2 * top, 4 * low]), rtol=0, atol=1e-14)


def test_a_tensor_without_a_pair_is_the_bases_own(tmp_path: Path, model: Path) -> None:
    adapter = tiny.lora(tmp_path / "lora", SHAPES)
    untouched = apply(model, adapter, "model.layers.0.self_attn.v_proj.weight")
    assert torch.equal(
        untouched, load_file(model / "model.safetensors")["model.layers.0.self_attn.v_proj.weight"].float()
    )


def test_a_fresh_adapter_changes_nothing(tmp_path: Path, model: Path) -> None:
    adapter = tiny.lora(tmp_path / "lora", SHAPES)
    factors = load_file(adapter / "adapter_model.safetensors")
    zeroed = {name: torch.zeros_like(t) if ".lora_B." in name else t for name, t in factors.items()}
    save_file(zeroed, adapter / "adapter_model.safetensors")
    assert torch.equal(
        apply(model, adapter, f"{Q}.weight"), load_file(model / "model.safetensors")[f"{Q}.weight"].float()
    )


def test_rslora_scales_by_the_root_of_the_rank(tmp_path: Path, model: Path) -> None:
    adapter = tiny.lora(tmp_path / "lora", SHAPES, r=4, alpha=6, use_rslora=True)
    found = apply(model, adapter, f"{Q}.weight", torch.float64)
    assert torch.allclose(found, dense(model, adapter, Q, 6 / math.sqrt(4)), rtol=0, atol=1e-14)


def test_rank_and_alpha_patterns_scale_each_module_by_its_own(tmp_path: Path, model: Path) -> None:
    adapter = tiny.lora(
        tmp_path / "lora",
        SHAPES,
        r=4,
        alpha=8,
        rank_pattern={"q_proj": 2},
        alpha_pattern={r"layers\.\d+\.mlp.*": 20},
    )
    assert pair_of(model, adapter, f"{Q}.weight").scale == 8 / 2
    assert pair_of(model, adapter, f"{Q}.weight").rank == 2
    assert pair_of(model, adapter, f"{DOWN}.weight").scale == 20 / 4
    assert pair_of(model, adapter, f"{K}.weight").scale == 8 / 4
    found = apply(model, adapter, f"{Q}.weight", torch.float64)
    assert torch.allclose(found, dense(model, adapter, Q, 4), rtol=0, atol=1e-14)


def test_a_pattern_matches_whole_module_names_only(tmp_path: Path, model: Path) -> None:
    adapter = tiny.lora(
        tmp_path / "lora", SHAPES, alpha=8, r=4, alpha_pattern={"proj": 100, "0.self_attn.q_proj": 40}
    )
    assert pair_of(model, adapter, f"{Q}.weight").scale == 40 / 4
    assert pair_of(model, adapter, f"{K}.weight").scale == 8 / 4


@pytest.mark.parametrize(
    ("module", "shape"), [("attn.c_attn", (48, 16)), ("attn.c_proj", (16, 16)), ("mlp.c_fc", (64, 16))]
)
@pytest.mark.parametrize("flag", [True, False])
def test_conv1d_weights_get_the_transposed_product(
    tmp_path: Path, module: str, shape: tuple[int, int], flag: bool
) -> None:
    base = tiny.gpt2(tmp_path / "base")
    name = f"transformer.h.1.{module}"
    adapter = tiny.lora(tmp_path / "lora", {name: shape}, fan_in_fan_out=flag)
    found = apply(base, adapter, f"{name}.weight", torch.float64)
    assert torch.allclose(found, dense(base, adapter, name, 2, turned=True), rtol=0, atol=1e-14)


def test_embedding_factors_are_transposed(tmp_path: Path, model: Path) -> None:
    name = "model.embed_tokens"
    adapter = tiny.lora(tmp_path / "lora", {name: (260, 16)}, r=4, alpha=8)
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name}.lora_embedding_{part}"].double() for part in "AB")
    assert (a.shape, b.shape) == ((4, 260), (16, 4))
    expected = load_file(model / "model.safetensors")[f"{name}.weight"].double() + (b @ a).T * 2
    assert torch.allclose(
        apply(model, adapter, f"{name}.weight", torch.float64), expected, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("block", [1, 7, 32, 100, 511])
@pytest.mark.parametrize("tile", [1, 40, 1 << 16])
def test_no_block_size_changes_a_bit(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, block: int, tile: int
) -> None:
    monkeypatch.setattr(reading, "TILE_ELEMENTS", tile)
    adapter = tiny.lora(tmp_path / "lora", SHAPES, r=3)
    whole = apply(model, adapter, f"{DOWN}.weight")
    assert torch.equal(apply(model, adapter, f"{DOWN}.weight", block=block), whole)


def test_large_factors_give_the_same_bits_in_any_blocks(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny.write_tensors(folder, {"model.wide.weight": tiny.noise("w", (700, 900), 0).bfloat16()})
    adapter = tiny.lora(tmp_path / "lora", {"model.wide": (700, 900)}, r=24, alpha=10)
    whole = apply(folder, adapter, "model.wide.weight")
    assert torch.equal(apply(folder, adapter, "model.wide.weight", block=65536), whole)
    assert torch.equal(apply(folder, adapter, "model.wide.weight", block=12345), whole)


def test_saved_modules_and_biases_replace_the_bases(tmp_path: Path) -> None:
    base = tiny.vit(tmp_path / "base")
    head = torch.full((3, 16), 0.5)
    bias = torch.arange(16.0)
    query = "vit.encoder.layer.0.attention.attention.query"
    adapter = tiny.lora(
        tmp_path / "lora", {query: (16, 16)}, saved={"classifier.weight": head, f"{query}.bias": bias},
        modules_to_save=["classifier"], bias="lora_only",
    )  # fmt: skip
    assert torch.equal(apply(base, adapter, "classifier.weight"), head)
    assert torch.equal(apply(base, adapter, f"{query}.bias"), bias)


def test_a_model_saved_without_its_outer_name_still_fits(tmp_path: Path) -> None:
    base = tiny.gpt2(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): t for name, t in tensors.items()}, base / "model.safetensors"
    )
    adapter = tiny.lora(tmp_path / "lora", {"transformer.h.0.mlp.c_fc": (64, 16)}, fan_in_fan_out=True)
    index = attach(index_folder(base), index_adapter_folder(adapter))
    assert index.adapter is not None
    assert set(index.adapter.pairs) == {"h.0.mlp.c_fc.weight"}


def test_attaching_changes_the_digest_and_says_what_changed(tmp_path: Path, model: Path) -> None:
    plain = index_folder(model)
    fitted = attach(plain, index_adapter_folder(tiny.lora(tmp_path / "lora", SHAPES)))
    assert fitted.digest != plain.digest
    with TensorReader(model, fitted, tmp_path / "lora") as reader:
        assert reader.changed(f"{Q}.weight")
        assert not reader.changed("model.norm.weight")
    with pytest.raises(file_errors.FileMissing, match="adapter"):
        TensorReader(model, fitted)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"), ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"), ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa"}, "pissa"), ({"init_lora_weights": "olora"}, "olora"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"), ({"alora_invocation_tokens": [1]}, "alora"),
        ({"r": 0}, "r must be"), ({"r": "4"}, "r must be"), ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"), ({"rank_pattern": {"x": "y"}}, "rank_pattern"),
        ({"alpha_pattern": {"(a+)+": 1}}, "too complicated"),
        ({"alpha_pattern": {".*.*.*x": 1}}, "too complicated"),
        ({"alpha_pattern": {"[": 1}}, "not a valid pattern"), ({"r": 8}, "should have rank 8"),
        ({"lora_alpha": 10**400}, "lora_alpha holds 1000"), ({"rank_pattern": {"q_proj": 0}}, "the rank 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied_exactly_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    folder = tiny.lora(tmp_path / "lora", SHAPES)
    document = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(document | config))
    with pytest.raises(errors.AdapterRefused, match=rf"org/lora.*{named}"):
        index_adapter_folder(folder, "org/lora")


@pytest.mark.parametrize("name", ["lora_magnitude_vector", "lora_B.bias", "lora_A.weight.extra"])
def test_an_unknown_kind_of_factor_is_named(tmp_path: Path, name: str) -> None:
    folder = tiny.lora(tmp_path / "lora", SHAPES, saved={f"{Q}.{name}": torch.zeros(16)})
    with pytest.raises(errors.AdapterRefused, match=name):
        index_adapter_folder(folder)


def test_of_two_adapters_in_one_file_none_is_lost(tmp_path: Path) -> None:
    second = {f"{Q}.lora_A.second.weight": torch.zeros(4, 16)}
    with pytest.raises(errors.AdapterRefused, match=r"lora_A\.second\.weight and .* are for the same tensor"):
        index_adapter_folder(tiny.lora(tmp_path / "factors", SHAPES, saved=second))
    twice = {"lm_head.modules_to_save.a.weight": torch.ones(2), "lm_head.weight": torch.zeros(2)}
    with pytest.raises(errors.AdapterRefused, match=r"modules_to_save.* are for the same tensor"):
        index_adapter_folder(tiny.lora(tmp_path / "saved", SHAPES, saved=twice))


OLD, NEW = "language_model.model", "model.language_model"


def seeing(folder: Path, text: str, vision: str, **config: Any) -> Path:
    """A language model that sees, whose two halves have layers of the same names and shapes."""
    names = [f"{half}.layers.{n}.self_attn.q_proj" for half in (text, vision) for n in range(2)]
    shapes = {f"{name}.weight": (16, 16) for name in names} | {f"{text}.embed_tokens.weight": (20, 16)}
    document = {"model_type": "llava", "tie_word_embeddings": False, **config}
    return tiny.write_model(folder, document, shapes, dtype=torch.float32)


@pytest.mark.parametrize(("ours", "theirs"), [(NEW, OLD), (OLD, NEW), (NEW, "model"), ("model", NEW)])
def test_an_adapter_finds_the_text_model_where_transformers_keeps_it_in_other_versions(
    tmp_path: Path, ours: str, theirs: str
) -> None:
    base = seeing(tmp_path / "base", theirs, "vision_tower.encoder")
    names = [f"{ours}.layers.1.self_attn.q_proj", "model.vision_tower.encoder.layers.0.self_attn.q_proj"]
    adapter = tiny.lora(tmp_path / "lora", dict.fromkeys(names, (16, 16)))
    fitted = attach(index_folder(base), index_adapter_folder(adapter)).adapter
    assert fitted is not None
    wanted = {
        f"{theirs}.layers.1.self_attn.q_proj.weight", "vision_tower.encoder.layers.0.self_attn.q_proj.weight",
    }  # fmt: skip
    assert set(fitted.pairs) == wanted


def test_a_tied_embedding_is_known_under_its_other_name(tmp_path: Path) -> None:
    base = seeing(tmp_path / "base", OLD, "vision_tower.encoder", tie_word_embeddings=True)
    adapter = index_adapter_folder(tiny.lora(tmp_path / "lora", {f"{NEW}.embed_tokens": (20, 16)}))
    with pytest.raises(errors.AdapterMismatch, match=r"embedding \(tied\)"):
        attach(index_folder(base), adapter)


def test_two_names_of_one_tensor_are_told(tmp_path: Path, model: Path) -> None:
    adapter = index_adapter_folder(tiny.lora(tmp_path / "lora", {Q: (16, 16), Q[6:]: (16, 16)}))
    with pytest.raises(errors.AdapterMismatch, match="which are both"):
        attach(index_folder(model), adapter)


def test_one_factor_without_the_other_is_named(tmp_path: Path) -> None:
    folder = tiny.lora(tmp_path / "lora", SHAPES)
    factors = load_file(folder / "adapter_model.safetensors")
    del factors[f"base_model.model.{Q}.lora_B.weight"]
    save_file(factors, folder / "adapter_model.safetensors")
    with pytest.raises(errors.AdapterRefused, match=r"q_proj has lora_A"):
        index_adapter_folder(folder)


def test_an_adapter_for_another_model_is_refused_by_tensor(tmp_path: Path, model: Path) -> None:
    other = index_adapter_folder(
        tiny.lora(tmp_path / "lora", {"model.layers.7.self_attn.q_proj": (16, 16)}), "org/lora"
    )
    with pytest.raises(
        errors.AdapterMismatch, match=r"org/lora changes model\.layers\.7\.self_attn\.q_proj\.weight"
    ):
        attach(index_folder(model), other)


def test_an_adapter_of_another_width_is_refused_by_tensor(tmp_path: Path, model: Path) -> None:
    wide = index_adapter_folder(tiny.lora(tmp_path / "lora", {Q: (32, 32)}))
    with pytest.raises(errors.AdapterMismatch, match=r"q_proj\.weight as if it had shape \(32, 32\)"):
        attach(index_folder(model), wide)


def test_a_saved_module_of_another_shape_is_refused_by_tensor(tmp_path: Path, model: Path) -> None:
    folder = tiny.lora(tmp_path / "lora", SHAPES, saved={"lm_head.weight": torch.zeros(300, 16)})
    with pytest.raises(errors.AdapterMismatch, match=r"lm_head\.weight by a tensor of shape \(300, 16\)"):
        attach(index_folder(model), index_adapter_folder(folder))


def test_an_embedding_adapter_on_a_tied_model_is_refused(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base", tied=True)
    adapter = tiny.lora(tmp_path / "lora", {"model.embed_tokens": (260, 16)})
    with pytest.raises(errors.AdapterMismatch, match="tied"):
        attach(index_folder(base), index_adapter_folder(adapter))


def test_factors_of_an_embedding_and_its_tied_head_are_one_change(tmp_path: Path) -> None:
    """PEFT writes both with ``ensure_weight_tying``, the same turned round; its forward adds each once."""
    base = tiny.llama(tmp_path / "base", tied=True)
    shapes = {"model.embed_tokens": (260, 16), "lm_head": (260, 16)}
    adapter = tiny.lora(tmp_path / "lora", shapes, ensure_weight_tying=True)
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.model.embed_tokens.lora_embedding_{part}"].double() for part in "AB")
    words = load_file(base / "model.safetensors")["model.embed_tokens.weight"].double()
    read = apply(base, adapter, "model.embed_tokens.weight").double()
    torch.testing.assert_close(read, words + 2 * (b @ a).T, rtol=0, atol=1e-6)
    uneven = tiny.lora(tmp_path / "uneven", shapes, ensure_weight_tying=True, alpha_pattern={"lm_head": 2})
    with pytest.raises(errors.AdapterMismatch, match="tied"):
        attach(index_folder(base), index_adapter_folder(uneven))


def test_an_adapter_beside_a_config_or_a_whole_model_is_found(tmp_path: Path) -> None:
    folder = tiny.lora(tiny.llama(tmp_path / "both"), SHAPES)
    assert set(index_adapter_folder(folder).pairs) == {f"{module}.weight" for module in SHAPES}
    (folder / "model.safetensors").unlink()
    assert len(index_adapter_folder(folder).pairs) == 3


def test_a_pickled_adapter_is_refused_and_a_missing_one_named(tmp_path: Path) -> None:
    folder = tiny.lora(tmp_path / "lora", SHAPES)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(file_errors.PickleRefused, match="can run code"):
        index_adapter_folder(folder)
    with pytest.raises(
        errors.AdapterRefused, match=r"no adapter_config\.json.*only the form that PEFT writes"
    ):
        index_adapter_folder(tiny.llama(tmp_path / "no adapter"))
    (folder / "adapter_model.bin").rename(folder / "adapters.safetensors")  # MLX's
    with pytest.raises(
        file_errors.FileMissing, match=r"is missing, and adapters\.safetensors is there.*PEFT"
    ):
        index_adapter_folder(folder)
    with pytest.raises(
        errors.AdapterRefused, match=r"one in last, step-10: name the folder, as org/repo:last"
    ):
        index_adapter("a", {f"{each}/adapter_config.json": 2 for each in ("step-10", "last")}, {}, {})
