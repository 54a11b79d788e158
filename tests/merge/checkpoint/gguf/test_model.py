"""GGUF files are read as the transformers models they were made from."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from merge.checkpoint.codecs.gguf import BLOCKS, PLAIN
from merge.checkpoint.gguf.types import OTHERS, TYPES
from merge.checkpoint.index import index_folder
from merge.checkpoint.reader import TensorReader
from merge.file_errors import GgufMalformed, GgufUnsupported, NoWeights, ShardMissing
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests.merge.arch import zoo
from tests.merge.checkpoint.gguf.write import ARCHITECTURES, F32, Q8_0, model_of, write

BUDGET = 96 << 20


def saved(name: str, folder: Path, seed: int = 0) -> tuple[dict[str, torch.Tensor], Any]:
    """A tiny model's tensors as transformers saves them, and its config."""
    model = model_of(name, seed)
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors"), model.config


def read_all(path: Path) -> dict[str, torch.Tensor]:
    index = index_folder(path)
    found = {}
    with TensorReader(path.parent, index) as reader:
        for name, info in index.tensors.items():
            out = torch.empty(info.numel)
            reader.read_float(name, 0, info.numel, out)
            found[name] = out.view(info.shape)
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_holds_the_tensors_it_was_made_from(tmp_path: Path, name: str) -> None:
    tensors, config = saved(name, tmp_path / "hf")
    found = read_all(write(tmp_path / "m.gguf", name, tensors, config))
    assert found.keys() == tensors.keys()
    for key, value in found.items():
        assert torch.allclose(value, tensors[key].float(), atol=1e-6), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_derived_config_loads_the_tensors_and_computes_the_same(tmp_path: Path, name: str) -> None:
    """A merge of a file with itself is a whole model: same names, same logits as the original's."""
    tensors, config = saved(name, tmp_path / "hf")
    out = merged({"a": write(tmp_path / "m.gguf", name, tensors, config)}, tmp_path / "out")
    made = json.loads((out / "config.json").read_text())
    kind = {"mistral": "llama"}.get(name, name)
    assert made["model_type"] == zoo_type(kind)
    model, told = getattr(transformers, made["architectures"][0]).from_pretrained(
        out, output_loading_info=True, local_files_only=True, dtype=torch.float32
    )
    assert not any(told[each] for each in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = model_of(name)
    tokens = torch.tensor([[1, 5, 9, 13, 17]])
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, original(tokens).logits, atol=2e-4)


def zoo_type(name: str) -> str:
    config: Any = getattr(transformers, zoo.ZOO[name].config)
    return str(config.model_type)


def merged(paths: dict[str, Path], out: Path, **more: Any) -> Path:
    recipe = recipe_from({
        "sources": [{"id": key, "model": str(path)} for key, path in paths.items()],
        "steps": [{"method": "linear"}], **more,
    })  # fmt: skip
    indices = {key: index_folder(path, key) for key, path in paths.items()}
    plan = make_plan(recipe, indices, budget=BUDGET)
    folders = {key: path.parent if path.is_file() else path for key, path in paths.items()}
    run(plan, folders, out, budget_bytes=BUDGET, threads=1)
    return out


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_quantised_file_merges_with_a_folder(tmp_path: Path, name: str) -> None:
    tensors, config = saved(name, tmp_path / "hf")
    other, _ = saved(name, tmp_path / "other", seed=1)
    (tmp_path / "g").mkdir()
    path = write(tmp_path / "g" / "m-Q8_0.gguf", name, tensors, config, Q8_0)
    index = index_folder(path)
    assert index.decoding is not None
    assert index.decoding.scheme == "GGUF (Q8_0)"
    assert {info.dtype for info in index.tensors.values()} == {"BF16"}
    out = merged({"a": path, "b": tmp_path / "other"}, tmp_path / "out")
    made = load_file(out / "model.safetensors")
    for key, value in made.items():
        wanted = (tensors[key] + other[key]) / 2
        step = tensors[key].abs().max() / 127
        assert (value.float() - wanted).abs().max() <= step / 2 + wanted.abs().max() * 2**-8, key


@pytest.mark.parametrize("kind", [t for t in TYPES if TYPES[t].bits], ids=lambda kind: TYPES[kind].name)
def test_every_block_type_is_decoded_as_the_reference_does(kind: int) -> None:
    rng = np.random.default_rng(kind)
    size = TYPES[kind]
    blocks = rng.integers(0, 256, (64, size.block_bytes), dtype=np.uint8)
    _make_finite(blocks, size.name)
    wanted = gguf.quants.dequantize(blocks.reshape(-1), gguf.GGMLQuantizationType(kind))
    out = torch.empty(64, size.entries)
    BLOCKS[kind](torch.from_numpy(blocks), out)
    assert np.array_equal(out.numpy().reshape(-1), wanted)


def _make_finite(blocks: np.ndarray[Any, Any], name: str) -> None:
    """No scale is infinite or NaN: the top exponent bit of each 16-bit float is cleared."""
    ends = {"Q2_K": (81, 83), "Q3_K": (109,), "Q6_K": (209,), "Q4_K": (1, 3), "Q5_K": (1, 3)}
    if name == "MXFP4":
        blocks[:, 0] %= 200
    for place in ends.get(name, (1, 3) if name.endswith("_1") else () if name == "MXFP4" else (1,)):
        blocks[:, place] &= 0xBF


def test_the_types_are_those_of_the_reference() -> None:
    for number, kind in TYPES.items():
        reference = gguf.GGMLQuantizationType(number)
        assert (reference.name, *gguf.GGML_QUANT_SIZES[reference]) == (
            kind.name,
            kind.entries,
            kind.block_bytes,
        )
        assert (number in BLOCKS) != (number in PLAIN)
    assert all(gguf.GGMLQuantizationType(number).name == name for number, name in OTHERS.items())


def test_sixteen_bit_files_are_read_and_stay_sixteen_bit(tmp_path: Path) -> None:
    tensors, config = saved("llama", tmp_path / "hf")
    path = write(tmp_path / "m.gguf", "llama", tensors, config, gguf.GGMLQuantizationType.BF16)
    found = read_all(path)
    assert {info.dtype for info in index_folder(path).tensors.values()} == {"BF16"}
    assert index_folder(path).decoding is None
    for key, value in found.items():
        wanted = tensors[key].bfloat16().float() if tensors[key].dim() > 1 else tensors[key]
        assert torch.equal(value, wanted), key


def test_any_rows_of_a_rotated_tensor_are_the_same(tmp_path: Path) -> None:
    tensors, config = saved("llama", tmp_path / "hf")
    path = write(tmp_path / "m.gguf", "llama", tensors, config, Q8_0)
    name = "model.layers.1.self_attn.q_proj.weight"
    whole = read_all(path)[name].view(-1)
    with TensorReader(path.parent, index_folder(path)) as reader:
        for first, count in ((0, 1), (64, 64), (100, 900), (63 * 64 + 5, 59)):
            out = torch.empty(count)
            reader.read_float(name, first, count, out)
            assert torch.equal(out, whole[first : first + count])


def test_the_plan_tells_of_a_config_that_was_derived(tmp_path: Path) -> None:
    tensors, config = saved("llama", tmp_path / "hf")
    path = write(tmp_path / "m.gguf", "llama", tensors, config)
    recipe = recipe_from({"sources": [{"id": "a", "model": "a"}], "steps": [{"method": "linear"}]})
    plan = make_plan(recipe, {"a": index_folder(path, "a")}, budget=BUDGET)
    assert "config_derived" in {finding.code for finding in plan.findings}


def test_a_real_config_of_another_model_is_taken_instead(tmp_path: Path) -> None:
    tensors, config = saved("mistral", tmp_path / "hf")
    saved("mistral", tmp_path / "other", seed=1)
    (tmp_path / "g").mkdir()
    path = write(tmp_path / "g" / "m.gguf", "mistral", tensors, config)
    out = merged({"a": path, "b": tmp_path / "other"}, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["model_type"] == "mistral"


def test_a_folder_with_several_files_wants_one_named(tmp_path: Path) -> None:
    tensors, config = saved("llama", tmp_path / "hf")
    (tmp_path / "g").mkdir()
    for kind in ("a", "b"):
        write(tmp_path / "g" / f"{kind}.gguf", "llama", tensors, config)
    with pytest.raises(NoWeights, match=r"folder/a\.gguf"):
        index_folder(tmp_path / "g")
    assert index_folder(tmp_path / "g" / "b.gguf").parameters


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    tensors, config = saved("llama", tmp_path / "hf")
    with pytest.raises(ShardMissing, match="one part of 3"):
        index_folder(write(tmp_path / "a.gguf", "llama", tensors, config, **{"split.count": 3}))
    data = write(tmp_path / "b.gguf", "llama", tensors, config).read_bytes()
    (tmp_path / "c.gguf").write_bytes(data.replace(b"blk.0.attn_v.weight", b"blk.0.attn_x.weight"))
    with pytest.raises(GgufUnsupported, match=r"blk\.0\.attn_x"):
        index_folder(tmp_path / "c.gguf")
    (tmp_path / "d.gguf").write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0clown"))
    with pytest.raises(GgufUnsupported, match="clown"):
        index_folder(tmp_path / "d.gguf")


def test_a_file_without_an_embedding_is_refused(tmp_path: Path) -> None:
    tensors, config = saved("llama", tmp_path / "hf")
    rest = {name: tensor for name, tensor in tensors.items() if "embed_tokens" not in name}
    with pytest.raises(GgufMalformed, match=r"no token_embd\.weight"):
        index_folder(write(tmp_path / "m.gguf", "llama", rest, config))


def test_heads_of_phi3_that_are_turned_in_part_stay_so(tmp_path: Path) -> None:
    tensors, config = saved("phi3", tmp_path / "hf")
    half = config.hidden_size // config.num_attention_heads // 2
    path = write(tmp_path / "m.gguf", "phi3", tensors, config, **{"phi3.rope.dimension_count": half})
    assert index_folder(path).config["partial_rotary_factor"] == 0.5
    whole = write(tmp_path / "n.gguf", "phi3", tensors, config, **{"phi3.rope.dimension_count": 2 * half})
    assert "partial_rotary_factor" not in index_folder(whole).config


def test_a_file_that_does_not_say_its_sizes_is_refused(tmp_path: Path) -> None:
    tensors, config = saved("llama", tmp_path / "hf")
    data = write(tmp_path / "a.gguf", "llama", tensors, config, F32).read_bytes()
    (tmp_path / "b.gguf").write_bytes(data.replace(b"llama.context_length", b"llama.contekst_lengt"))
    with pytest.raises(GgufMalformed, match="context_length"):
        index_folder(tmp_path / "b.gguf")
