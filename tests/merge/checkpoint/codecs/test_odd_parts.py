"""Quantised parts of unusual shapes and kinds: what they stand for, or a refusal, never other numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge.checkpoint.index import index_folder
from merge.file_errors import QuantizationMalformed
from tests.merge.checkpoint.codecs.encode import Case, awq, gptq, mxfp4, packed, per_row
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


def test_bits_that_the_scales_do_not_tell_apart_are_refused(tmp_path: Path) -> None:
    config = listing({"num_bits": 4, "group_size": 64}, {"num_bits": 8, "group_size": 32})
    with pytest.raises(QuantizationMalformed, match=r"layers of 4, 8 bits, .* m\.weight_packed"):
        index_folder(write(tmp_path, replace(packed(8), config=config)))


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
        changed(awq(), "m.qzeros", torch.int64),
        changed(mxfp4(), "m.gate_up_proj_scales", torch.float8_e8m0fnu),
    ],
    ids=["a scale of no numbers", "words that end in a code", "wide zero points", "other exponents"],
)
def test_parts_that_would_be_read_as_others_are_refused(tmp_path: Path, case: Case) -> None:
    with pytest.raises(QuantizationMalformed):
        index_folder(write(tmp_path, case))
