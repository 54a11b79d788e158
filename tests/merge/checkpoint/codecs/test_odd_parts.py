"""Quantised parts of unusual shapes and kinds: what they stand for, or a refusal, never other numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge.checkpoint.index import index_folder
from merge.file_errors import QuantizationMalformed
from tests.merge.checkpoint.codecs.case import Case
from tests.merge.checkpoint.codecs.encode import awq, bitsandbytes, gptq, mxfp4, packed
from tests.merge.checkpoint.codecs.encode_eight import int8, per_row
from tests.merge.checkpoint.codecs.test_codecs import read, write


def listing(*weights: dict[str, Any]) -> dict[str, Any]:
    """A compressed-tensors config with these groups of layers."""
    groups = {f"group_{place}": {"weights": each} for place, each in enumerate(weights)}
    return {"quant_method": "compressed-tensors", "config_groups": groups}


def decoded(folder: Path, case: Case) -> np.ndarray[Any, Any]:
    """The numbers read for a case, in the shape that the index tells."""
    info = index_folder(write(folder, case)).tensors[case.name]
    return read(folder, case.name, 0, info.numel).double().numpy().reshape(info.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", [1, -1])
def test_each_module_is_decoded_with_its_own_bits_of_those_that_the_config_lists(
    tmp_path: Path, bits: int, order: int
) -> None:
    both = [{"num_bits": each, "type": "int", "group_size": 32} for each in (4, 8)][::order]
    case = replace(packed(bits), config=listing(*both, {"num_bits": 8, "type": "float"}))
    assert np.allclose(decoded(tmp_path, case), case.wanted, rtol=1e-6)


def test_bits_are_read_where_older_files_of_compressed_tensors_say_them(tmp_path: Path) -> None:
    case = packed(8)
    folder = write(tmp_path, replace(case, config={}), compression_config=case.config)
    assert index_folder(folder).tensors["m.weight"].shape == case.wanted.shape


def test_bits_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    config = listing({"num_bits": 4, "group_size": 64}, {"num_bits": 8, "group_size": 32})
    stored = {name: part for name, part in packed(8).stored.items() if name != "m.weight_shape"}
    with pytest.raises(QuantizationMalformed, match=r"layers of 4, 8 bits, .* m\.weight_packed"):
        index_folder(write(tmp_path, replace(packed(8), stored=stored, config=config)))


def test_bits_are_those_of_the_shape_where_the_scales_fit_several(tmp_path: Path) -> None:
    one_a_row = {**packed(8).stored, "m.weight_scale": torch.full((24, 1), 0.5)}
    config = listing(*({"num_bits": bits, "strategy": "channel"} for bits in (4, 8)))
    folder = write(tmp_path, replace(packed(8), stored=one_a_row, config=config))
    assert index_folder(folder).tensors["m.weight"].shape == (24, 64)


def test_a_pack_whose_shape_is_not_that_of_other_layers_is_refused_when_it_is_read(tmp_path: Path) -> None:
    stored: dict[str, torch.Tensor] = {}
    for layer, inputs in enumerate((59, 60)):
        stored |= {f"l.{layer}.{name}": part for name, part in packed(inputs=inputs).stored.items()}
    folder = write(tmp_path, replace(packed(), stored=stored))
    assert read(folder, "l.0.m.weight", 0, 5).isfinite().all()
    with pytest.raises(QuantizationMalformed, match=r"l\.1\.m\.weight_shape is not \[24, 59\]"):
        read(folder, "l.1.m.weight", 0, 5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("other.bitmask", {}),
        ("m.some_scale", {}),
        ("other.weight._scale", {}),
        ("m.bias", {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}),
    ],
)
def test_codes_that_are_not_all_there_is_to_a_weight_are_refused(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    case = per_row()
    case = replace(case, stored={**case.stored, name: torch.ones(40)}, config={**case.config, **config})
    with pytest.raises(QuantizationMalformed, match="makes other weights"):
        index_folder(write(tmp_path, case))


@pytest.mark.parametrize("make", [gptq, int8, bitsandbytes])
def test_matrices_of_gpt2_are_stored_as_linear_layers_and_read_as_its_own(tmp_path: Path, make: Any) -> None:
    case = make()
    stored = {f"h.0.attn.c_proj.{name.removeprefix('m.')}": part for name, part in case.stored.items()}
    folder = write(tmp_path, replace(case, stored=stored), model_type="gpt2")
    info = index_folder(folder).tensors["h.0.attn.c_proj.weight"]
    assert info.shape == case.wanted.T.shape
    found = read(folder, info.name, 7, info.numel - 7).double().numpy()
    assert np.allclose(found, case.wanted.T.reshape(-1)[7:], rtol=1e-6)


def test_blocks_of_scales_are_of_the_size_that_compressed_tensors_says(tmp_path: Path) -> None:
    """192 rows are a block of 128 and one of 64, not two of 96."""
    codes = (torch.randn(192, 40, generator=torch.Generator().manual_seed(1)) * 8).to(torch.float8_e4m3fn)
    scale = torch.tensor([[0.5], [4.0]])
    wanted = codes.double().numpy()
    wanted[:128] *= 0.5
    wanted[128:] *= 4
    config = listing({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]})
    case = Case({"m.weight": codes, "m.weight_scale": scale}, config, "m.weight", wanted, "F8_E4M3")
    assert np.allclose(decoded(tmp_path, case), wanted, rtol=1e-6)


def test_a_vector_may_have_a_scale_an_entry(tmp_path: Path) -> None:
    codes, scale = torch.arange(1.0, 9).to(torch.float8_e4m3fn), torch.rand(8) + 0.5
    wanted = codes.double().numpy() * scale.double().numpy()
    case = Case({"m.weight": codes, "m.weight_scale": scale}, {}, "m.weight", wanted, "F8_E4M3")
    assert np.allclose(decoded(tmp_path, case), wanted, rtol=1e-6)


def without_entries() -> Case:
    """Eight-bit floats whose scale is there, but holds no number."""
    case = per_row()
    return replace(case, stored={**case.stored, "m.weight_scale": torch.zeros(0)})


def three_bits() -> Case:
    """GPTQ at three bits whose words are no multiple of three."""
    case = gptq(3, groups=1, outputs=96)
    stored = {name: part for name, part in case.stored.items() if name != "m.g_idx"}
    return replace(case, stored={**stored, "m.qweight": torch.zeros(4, 96, dtype=torch.int32)})


def changed(case: Case, name: str, dtype: torch.dtype) -> Case:
    """The same with a part in another dtype."""
    return replace(case, stored={**case.stored, name: case.stored[name].to(dtype)})


@pytest.mark.parametrize(
    "case",
    [
        without_entries(),
        three_bits(),
        changed(packed(), "m.weight_shape", torch.float32),
        replace(packed(), stored={**packed().stored, "m.weight_shape": torch.tensor([24, 40])}),
        replace(packed(), stored={**packed().stored, "m.weight_shape": torch.tensor([25, 64])}),
        changed(awq(), "m.qzeros", torch.int64),
        changed(mxfp4(), "m.gate_up_proj_scales", torch.float8_e8m0fnu),
    ],
    ids=[
        "a scale of no numbers",
        "words that end in a code",
        "a shape of floats",
        "too few columns",
        "too many rows",
        "wide zero points",
        "other exponents",
    ],
)
def test_parts_that_would_be_read_as_others_are_refused(tmp_path: Path, case: Case) -> None:
    with pytest.raises(QuantizationMalformed):
        index_folder(write(tmp_path, case))
