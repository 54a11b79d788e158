"""Quantised weights are read as the numbers they stand for, in any block, and merge like any others."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint import codecs
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import attach, index_adapter_folder, index_folder, index_model, read_folder
from merge.checkpoint.places import pieces_in
from merge.checkpoint.reader import TensorReader
from merge.errors import PlanRefused
from merge.file_errors import FileSizeMismatch, QuantizationMalformed
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests import tiny
from tests.merge.checkpoint.codecs.case import Case
from tests.merge.checkpoint.codecs.encode import (
    CASES,
    awq,
    awq_gemv,
    awq_gemv_fast,
    bitsandbytes,
    gptq,
    mxfp4,
    packed,
)
from tests.merge.checkpoint.codecs.encode_eight import deepseek, int8_zeros

BUDGET = 96 << 20
STATE = "m.weight.quant_state.bitsandbytes__nf4"


def write(folder: Path, case: Case, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stored = {**case.stored, "norm.weight": torch.ones(4, dtype=torch.bfloat16)}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    document = {"model_type": "llama", "dtype": "bfloat16", **config}
    if case.config:
        document["quantization_config"] = case.config
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def read(folder: Path, name: str, first: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.full((count,), torch.nan, dtype=dtype)
    with TensorReader(folder, index_folder(folder)) as reader:
        reader.read_float(name, first, count, out)
    return out


@pytest.mark.parametrize("kind", CASES)
def test_codes_are_read_as_the_numbers_they_stand_for(tmp_path: Path, kind: str) -> None:
    case = CASES[kind]()
    folder = write(tmp_path, case)
    index = index_folder(folder)
    assert set(index.tensors) == {case.name, "norm.weight"}
    info = index.tensors[case.name]
    assert (info.shape, info.dtype) == (case.wanted.shape, "BF16")
    assert info.nbytes == sum(part.nbytes for part in info.stored)
    assert index.decoding is not None
    assert index.decoding.scheme == case.scheme
    assert index.quantization is None
    found = read(folder, case.name, 0, info.numel).double().numpy().reshape(case.wanted.shape)
    assert np.allclose(found, case.wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", CASES)
def test_any_block_of_a_coded_tensor_has_the_same_bits(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[kind]()
    folder = write(tmp_path, case)
    whole = read(folder, case.name, 0, case.wanted.size)
    monkeypatch.setattr(codecs, "PIECE_ELEMENTS", 150)
    rng = np.random.default_rng(0)
    spans = [(0, case.wanted.size), (1, 1), (case.wanted.size - 1, 1), (3, case.wanted.size - 3), (5, 0)]
    spans += [tuple(sorted(rng.integers(0, case.wanted.size, 2))) for _ in range(20)]
    for first, last in spans[:1] + [(a, a + b) for a, b in spans[1:5]] + spans[5:]:
        found = read(folder, case.name, int(first), int(last - first))
        assert torch.equal(found, whole[first:last])
    assert torch.equal(read(folder, case.name, 7, 90, torch.float64), whole[7:97].double())


@pytest.mark.parametrize("make", [gptq, awq, awq_gemv, awq_gemv_fast, deepseek, packed, bitsandbytes])
def test_a_quantised_model_merges_with_a_plain_one(tmp_path: Path, make: Any) -> None:
    case = make()
    coded = write(tmp_path / "coded", case)
    plain = tmp_path / "plain"
    plain.mkdir()
    weights = torch.randn(case.wanted.shape).bfloat16()
    save_file({"m.weight": weights, "norm.weight": torch.zeros(4).bfloat16()}, plain / "model.safetensors")
    (plain / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    folders = {"coded": coded, "plain": plain}
    recipe = recipe_from({
        "sources": [{"id": key, "model": key} for key in folders], "steps": [{"method": "linear"}],
    })  # fmt: skip
    plan = make_plan(recipe, {key: index_folder(f, key) for key, f in folders.items()}, budget=BUDGET)
    told = [finding for finding in plan.findings if finding.code == "dequantized"]
    assert [(finding.model, finding.severity) for finding in told] == [("coded", "warning")]
    assert case.scheme in told[0].message
    run(plan, folders, tmp_path / "out", budget_bytes=BUDGET, threads=2)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    merged = load_file(tmp_path / "out" / "model.safetensors")
    wanted = (torch.from_numpy(case.wanted).float() + weights.float()) / 2
    assert merged["m.weight"].dtype == torch.bfloat16
    assert torch.allclose(merged["m.weight"].float(), wanted, rtol=2**-7)
    assert torch.equal(merged["norm.weight"].float(), torch.full((4,), 0.5))


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    tensors = {"m.W_q": torch.zeros(32, 1, dtype=torch.uint8), "m.scale": torch.zeros(1)}
    save_file(tensors, folder / "model.safetensors")
    config = {"quantization_config": {"quant_method": "hqq", "nbits": 4}}
    (folder / "config.json").write_text(json.dumps({"text_config": config} if inside else config))
    recipe = recipe_from({"sources": [{"id": "m", "model": "m"}], "steps": [{"method": "linear"}]})
    with pytest.raises(PlanRefused) as refused:
        make_plan(recipe, {"m": index_folder(folder, "m")}, budget=BUDGET)
    told = [f for f in refused.value.findings if f.severity == "error"]
    assert [(f.code, "hqq" in f.message) for f in told] == [("quantized", True)]


def test_what_only_mlx_declares_is_refused_when_it_is_planned(tmp_path: Path) -> None:
    stored = {"m.weight": torch.zeros(8, 8, dtype=torch.int32), "m.scales": torch.ones(8, 1)}
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"group_size": 64, "bits": 4}}))
    assert index_folder(tmp_path).quantization == "unknown"


def _without(case: Case, name: str) -> Case:
    return Case({k: v for k, v in case.stored.items() if k != name}, case.config, case.name, case.wanted, "")


def _with(case: Case, name: str, tensor: torch.Tensor) -> Case:
    return Case({**case.stored, name: tensor}, case.config, case.name, case.wanted, "")


def _said(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "case",
    [
        _without(gptq(), "m.scales"),
        _without(gptq(), "m.qzeros"),
        _with(gptq(), "m.qzeros", torch.zeros(4, 5, dtype=torch.int32)),
        _with(gptq(), "m.qzeros", torch.zeros(3, 6, dtype=torch.int32)),
        _with(gptq(), "m.g_idx", torch.zeros(5, dtype=torch.int32)),
        _with(gptq(), "m.scales", torch.ones(5, 48)),
        _with(awq(), "m.qzeros", torch.zeros(2, 5, dtype=torch.int32)),
        _with(awq(), "m.scales", torch.ones(2, 40)),
        awq_gemv(said=32),
        awq_gemv(said=128),
        awq_gemv(said=48),
        _without(awq_gemv(), "m.qzeros"),
        _with(awq_gemv(), "m.scales", torch.ones(8, 8)),
        _with(awq_gemv(), "m.qzeros", torch.zeros(8, 1, dtype=torch.int32)),
        _with(awq_gemv_fast(), "m.scaled_zeros", torch.zeros(16, 8)),
        _with(awq_gemv_fast(), "m.qweight", torch.zeros(2, 256, dtype=torch.int32)),
        _with(awq_gemv_fast(192, 32), "m.qweight", torch.zeros(2, 96, dtype=torch.int16)),
        _without(packed(), "m.weight_scale"),
        _with(packed(), "m.weight_zero_point", torch.zeros(4, 2, dtype=torch.int32)),
        _with(packed(), "m.weight_zero_point", torch.zeros(3, 2)),
        _with(packed(), "m.weight_g_idx", torch.zeros(63, dtype=torch.int32)),
        _with(int8_zeros(), "m.weight_zero_point", torch.zeros(24, 2, dtype=torch.int8)),
        _with(packed(), "m.weight_scale", torch.ones(24, 7)),
        _with(deepseek(), "m.weight_scale_inv", torch.ones(7, 4)),
        _with(deepseek(), "m.weight_scale_inv", torch.ones(2, 3, 4)),
        _with(mxfp4(), "m.gate_up_proj_scales", torch.zeros(2, 6, 3, dtype=torch.uint8)),
        _without(bitsandbytes(), "m.weight.nested_absmax"),
        _without(bitsandbytes(), "m.weight.quant_map"),
        _with(bitsandbytes(), "m.weight.absmax", torch.zeros(15)),
        _with(bitsandbytes(), "m.weight", torch.zeros(479, 1, dtype=torch.uint8)),
        _with(bitsandbytes(), STATE, _said("[]")),
        _with(bitsandbytes(), STATE, _said('{"shape": [20, 48]}')),
        _with(bitsandbytes(), STATE, _said('{"shape": [20, 0], "blocksize": 64}')),
        _with(bitsandbytes(), STATE, _said('{"shape": [20, 48], "blocksize": 0}')),
        _with(bitsandbytes(), STATE, _said('{"shape": [20, 48], "blocksize": 64, "nested_offset": NaN}')),
        _with(bitsandbytes(), STATE, torch.zeros(5000, dtype=torch.uint8)),
        _with(bitsandbytes(), STATE, torch.zeros(100)),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, case: Case) -> None:
    with pytest.raises(QuantizationMalformed):
        index_folder(write(tmp_path, case))


def test_groups_that_the_config_and_the_scales_of_awq_tell_differently_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizationMalformed, match=r"m.scales is F16 \[8, 16\], but \[8, 32\]"):
        index_folder(write(tmp_path, awq_gemv(said=32)))


def two_layers(second: Case) -> Case:
    """The matrix of ``bitsandbytes`` in one layer, another in the next."""
    stored: dict[str, torch.Tensor] = {}
    for layer, case in enumerate((bitsandbytes(), second)):
        stored |= {name.replace("m.", f"layers.{layer}.m."): part for name, part in case.stored.items()}
    return replace(second, stored=stored)


def test_one_state_of_each_kind_of_matrix_is_read_to_plan_with(tmp_path: Path) -> None:
    folder = write(tmp_path, two_layers(bitsandbytes(columns=64)))
    assert {
        name: info.shape for name, info in index_folder(folder).tensors.items() if name != "norm.weight"
    } == {"layers.0.m.weight": (20, 48), "layers.1.m.weight": (20, 64)}
    asked: list[str] = []
    alike = write(tmp_path / "alike", two_layers(bitsandbytes()))

    def pieces(wanted: Sequence[TensorInfo]) -> Mapping[str, bytes]:
        asked.extend(info.name for info in wanted)
        return pieces_in(alike)(wanted)

    index_model("m", *read_folder(alike, "m"), pieces)
    assert asked == [STATE.replace("m.", "layers.0.m.")]


def test_too_many_kinds_of_matrices_are_refused(tmp_path: Path) -> None:
    stored: dict[str, torch.Tensor] = {}
    for number in range(513):
        letters = "".join(chr(97 + int(digit)) for digit in str(number))
        stored |= {name.replace("m.", f"{letters}.", 1): part for name, part in bitsandbytes().stored.items()}
    with pytest.raises(QuantizationMalformed, match="more than 512 kinds"):
        index_folder(write(tmp_path, replace(bitsandbytes(), stored=stored)))


def test_a_matrix_that_is_not_like_that_of_other_layers_is_refused_when_it_is_read(tmp_path: Path) -> None:
    said = json.loads(bytes(bitsandbytes().stored[STATE].tolist()))
    other = _with(bitsandbytes(), STATE, _said(json.dumps(said | {"shape": [48, 20]})))
    folder = write(tmp_path, two_layers(other))
    with pytest.raises(QuantizationMalformed, match=r"layers.1.m.weight.quant_state.* \[48, 20\]"):
        read(folder, "layers.1.m.weight", 0, 10)


def test_each_matrix_has_the_offset_of_its_own_scales(tmp_path: Path) -> None:
    other = bitsandbytes(offset=1.3)
    folder = write(tmp_path, two_layers(other))
    found = read(folder, "layers.1.m.weight", 0, other.wanted.size).double().numpy()
    assert np.allclose(found, other.wanted.reshape(-1), rtol=1e-6)


def test_an_adapter_is_added_to_decoded_weights(tmp_path: Path) -> None:
    case = gptq()
    folder = write(tmp_path / "m", case)
    lora = tiny.lora(tmp_path / "lora", {"m": (48, 64)})
    index = attach(index_folder(folder), index_adapter_folder(lora))
    out = torch.empty(48 * 64)
    with TensorReader(folder, index, lora) as reader:
        reader.read_float("m.weight", 0, 48 * 64, out)
    factors = load_file(lora / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.m.lora_{part}.weight"] for part in "AB")
    wanted = torch.from_numpy(case.wanted).float() + 2 * (b @ a)
    assert torch.allclose(out.view(48, 64), wanted, atol=1e-5)


def test_a_group_index_out_of_range_is_refused(tmp_path: Path) -> None:
    case = _with(gptq(), "m.g_idx", torch.full((64,), 9, dtype=torch.int32))
    with pytest.raises(QuantizationMalformed, match="g_idx"):
        read(write(tmp_path, case), "m.weight", 0, 10)


def test_a_file_cut_short_after_planning_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path, awq())
    index = index_folder(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-600])
    with TensorReader(folder, index) as reader, pytest.raises(FileSizeMismatch):
        reader.read_float("m.weight", 0, 64, torch.empty(64))
