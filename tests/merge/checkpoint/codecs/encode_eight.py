"""Eight-bit floats and integers with their scales, and the numbers they stand for, as in ``encode``."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.merge.checkpoint.codecs.case import Case


def _eight(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 8).to(dtype)


def _product(codes: Tensor, scale: Callable[[tuple[int, ...]], float]) -> np.ndarray[Any, Any]:
    wanted = codes.double().numpy().copy()
    for place in np.ndindex(*wanted.shape):
        wanted[place] *= scale(place)
    return wanted


def deepseek() -> Case:
    """Blocks of 16 by 32, none of which fits: 40 by 100."""
    codes, scale = _eight(torch.float8_e4m3fn, (40, 100), 1), torch.rand(3, 4) + 0.5
    wanted = _product(codes, lambda at: float(scale[at[0] // 16, at[1] // 32]))
    stored = {"m.weight": codes, "m.weight_scale_inv": scale}
    config = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    return Case(stored, config, "m.weight", wanted, "F8_E4M3")


def per_tensor() -> Case:
    """One scale, as ModelOpt and compressed-tensors write it, beside one for activations."""
    codes, scale = _eight(torch.float8_e4m3fn, (24, 40), 2), torch.tensor([0.25])
    stored = {"m.weight": codes, "m.weight_scale": scale, "m.input_scale": torch.tensor([1.0])}
    wanted = _product(codes, lambda _: 0.25)
    return Case(stored, {"quant_method": "modelopt"}, "m.weight", wanted, "F8_E4M3")


def per_row(dtype: torch.dtype = torch.float8_e5m2) -> Case:
    """A scale for each output."""
    codes, scale = _eight(dtype, (24, 40), 3), (torch.rand(24, 1) + 0.5).bfloat16()
    wanted = _product(codes, lambda at: float(scale[at[0], 0]))
    stored = {"m.weight": codes, "m.weight_scale": scale}
    return Case(stored, {"quant_method": "compressed-tensors"}, "m.weight", wanted, "F8_E5M2")


def vector() -> Case:
    """A vector of scales under the module's own name."""
    codes, scale = _eight(torch.float8_e4m3fn, (24, 40), 4), torch.rand(24) + 0.5
    wanted = _product(codes, lambda at: float(scale[at[0]]))
    return Case({"m.weight": codes, "m.scale": scale}, {}, "m.weight", wanted, "F8_E4M3")


def named_otherwise(scale: str, *beside: str) -> Case:
    """One scale under a name of its own, and what else such files hold."""
    codes = _eight(torch.float8_e4m3fn, (24, 40), 2)
    stored = {"m.weight": codes, scale: torch.tensor(0.25), **{name: torch.ones(1) for name in beside}}
    if "scaled_fp8" in stored:
        stored["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return Case(stored, {}, "m.weight", _product(codes, lambda _: 0.25), "F8_E4M3")


def blocks_unsaid() -> Case:
    """Blocks of 128, as is usual where no config says: 200 rows are 128 and 72."""
    codes, scale = _eight(torch.float8_e4m3fn, (200, 4), 1), torch.tensor([[0.5], [4.0]])
    wanted = _product(codes, lambda at: 0.5 if at[0] < 128 else 4.0)
    return Case({"m.weight": codes, "m.weight_scale_inv": scale}, {}, "m.weight", wanted, "F8_E4M3")


def experts() -> Case:
    """A stack of matrices with a stack of scales along the columns."""
    codes, scale = _eight(torch.float8_e4m3fn, (3, 8, 12), 5), torch.rand(3, 1, 12) + 0.5
    wanted = _product(codes, lambda at: float(scale[at[0], 0, at[2]]))
    stored = {"m.gate_up_proj": codes, "m.gate_up_proj_scale": scale}
    return Case(stored, {"quant_method": "fbgemm_fp8"}, "m.gate_up_proj", wanted, "F8_E4M3")


def plain(dtype: torch.dtype = torch.float8_e4m3fn) -> Case:
    """Eight-bit floats that are the numbers themselves."""
    codes = _eight(dtype, (24, 40), 6)
    name = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}[dtype]
    return Case({"m.weight": codes}, {}, "m.weight", codes.double().numpy(), name)


def mx_eight() -> Case:
    """Eight-bit floats in groups of 32 with a power of two each."""
    codes = _eight(torch.float8_e4m3fn, (6, 64), 8)
    exponent = torch.randint(120, 134, (6, 2), dtype=torch.uint8)
    wanted = _product(codes, lambda at: 2.0 ** (int(exponent[at[0], at[1] // 32]) - 127))
    stored = {"m.weight": codes, "m.weight_scale": exponent}
    return Case(stored, {"quant_method": "mxfp8"}, "m.weight", wanted, "F8_E4M3")


def int8() -> Case:
    """bitsandbytes: the row's largest magnitude is 127."""
    codes = torch.randint(-127, 128, (24, 40), dtype=torch.int8)
    scale = torch.rand(24) + 0.5
    wanted = _product(codes, lambda at: float(scale[at[0]]) / 127)
    stored = {"m.weight": codes, "m.SCB": scale, "m.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Case(stored, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "m.weight", wanted, "INT8")


def int8_zeros() -> Case:
    """compressed-tensors: eight bits with a scale and a zero point a row."""
    codes = torch.randint(-128, 128, (24, 40), dtype=torch.int8)
    scale, zero = torch.rand(24, 1) + 0.5, torch.randint(-128, 128, (24, 1), dtype=torch.int8)
    wanted = codes.double().numpy().copy()
    for row, column in np.ndindex(24, 40):
        wanted[row, column] = (wanted[row, column] - float(zero[row, 0])) * float(scale[row, 0])
    stored = {"m.weight": codes, "m.weight_scale": scale, "m.weight_zero_point": zero}
    return Case(stored, {"quant_method": "compressed-tensors"}, "m.weight", wanted, "INT8")
