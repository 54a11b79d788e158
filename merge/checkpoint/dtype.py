"""Between the names of safetensors and torch: which raw view a tensor gets."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from merge.file_errors import DtypeUnsupported

_TORCH: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TORCH.items()}


def torch_dtype(name: str, tensor: str = "a tensor") -> torch.dtype:
    """The torch dtype of a safetensors dtype name; packed ones are refused, naming ``tensor``."""
    try:
        return _TORCH[name]
    except KeyError:
        raise DtypeUnsupported(
            f"{tensor} is stored as {name}, which holds no plain numbers; dequantise the model first."
        ) from None


def safetensors_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype."""
    return _NAMES[dtype]


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as writable bytes, without a copy."""
    array: Any = tensor.detach().view(-1).view(torch.uint8).numpy()
    return memoryview(array)
