"""Codes packed as compressed-tensors does it (``weight_packed``), gathered with their scales. Loads no torch.

A row is filled up to whole words, so only a small tensor beside it (``weight_shape``) tells how long it is.
Packs of one place in the layers and of one size are alike: one shape of each kind is read to plan with, and
decoding compares the others with it.
"""

import re
from collections.abc import Mapping
from typing import Any

from merge import file_errors
from merge.checkpoint.gathering import Gathering, group_said, rounding, size_of, weights_of
from merge.checkpoint.header import Coded, TensorInfo

PACKED, SHAPE = "weight_packed", "weight_shape"
_MOST_KINDS = 512
_BITS = (4, 8)
_NUMBER = re.compile(r"\d+")


def shapes_to_read(tensors: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    """One shape of each kind of packed integers."""
    found: dict[tuple[str, tuple[int, ...]], TensorInfo] = {}
    for name, packed in tensors.items():
        said = tensors.get(_beside(name))
        if name.endswith(f".{PACKED}") and packed.dtype == "I32" and said is not None:
            found.setdefault(_kind(packed), said)
        if len(found) > _MOST_KINDS:
            raise file_errors.QuantizationMalformed(
                f"There are more than {_MOST_KINDS} kinds of packed matrices ({name})."
            )
    for said in found.values():
        if said.numel != 2 or said.dtype not in ("I32", "I64"):
            raise file_errors.QuantizationMalformed(
                f"{said.name} is {said.dtype} {list(said.shape)}, not the two sides of a matrix."
            )
    return list(found.values())


def shapes_of(tensors: Mapping[str, TensorInfo], small: Mapping[str, bytes]) -> dict[str, tuple[int, int]]:
    """Rows and columns of packed integers by their names; ``small`` holds the contents of what
    ``shapes_to_read`` asked for.
    """
    packs = [info for name, info in tensors.items() if name.endswith(f".{PACKED}")]
    known = {_kind(each): _sides(small[said]) for each in packs if (said := _beside(each.name)) in small}
    return {each.name: known[_kind(each)] for each in packs if _kind(each) in known}


def _sides(raw: bytes) -> tuple[int, int]:
    half = len(raw) // 2
    return int.from_bytes(raw[:half], "little"), int.from_bytes(raw[half:], "little")


def _beside(name: str) -> str:
    return name.removesuffix(PACKED) + SHAPE


def _kind(packed: TensorInfo) -> tuple[str, tuple[int, ...]]:
    return _NUMBER.sub("*", packed.name), packed.shape


def gather_packed(work: Gathering, stem: str) -> None:
    """Packed integers, or four-bit floats, under the name of the weight."""
    packed, scale = work.left[f"{stem}{PACKED}"], work.left.get(f"{stem}weight_scale")
    if scale is None or len(packed.shape) != 2 or len(scale.shape) != 2 or packed.shape[0] != scale.shape[0]:
        raise file_errors.QuantizationMalformed(
            f"{packed.name} has no matrix of scales ({stem}weight_scale)."
        )
    if packed.dtype == "I32":
        _integers(work, stem, packed, scale)
    elif scale.dtype == "U8":
        _mxfp4(work, f"{stem}weight", packed, scale)
    else:
        whole = work.shaped(f"{stem}weight_global_scale", 1)
        gather_nvfp4(work, f"{stem}weight", packed, scale, whole, divide=1)


def _integers(work: Gathering, stem: str, packed: TensorInfo, scale: TensorInfo) -> None:
    outputs, groups = scale.shape
    said = work.shapes.get(packed.name)
    bits = _bits_of(work.config, packed, groups) if said is None else _bits_for(said[1], packed)
    inputs = packed.shape[1] * 32 // bits if said is None else said[1]
    if bits not in _BITS or not groups or (said is not None and said[0] != outputs):
        raise file_errors.QuantizationMalformed(
            f"{packed.name} ({bits} bits) and {scale.name} do not fit together."
        )
    parts = {"packed": packed, "scale": scale}
    if f"{stem}weight_zero_point" in work.left:
        words = -(-outputs * bits // 32)
        parts["zeros"] = work.shaped(f"{stem}weight_zero_point", words, groups, dtype="I32")
    if f"{stem}weight_g_idx" in work.left:
        parts["groups"] = work.shaped(f"{stem}weight_g_idx", inputs)
    if said is not None and _beside(packed.name) in work.left:
        parts["shape"] = work.shaped(_beside(packed.name), 2)
    size = size_of(inputs, groups, group_said(work.config, inputs, groups), scale)
    coded = Coded("packed", parts, {"bits": bits, "group": size, "rows": outputs, "columns": inputs})
    work.add(f"{stem}weight", (outputs, inputs), coded, f"compressed-tensors ({bits} bits)", rounding(bits))
    work.left.pop(_beside(packed.name), None)


def _bits_for(columns: int, packed: TensorInfo) -> int:
    """Bits of so many codes a row in so many words."""
    fitting = [bits for bits in _BITS if -(-columns * bits // 32) == packed.shape[1]]
    if columns < 1 or len(fitting) != 1:
        raise file_errors.QuantizationMalformed(
            f"{packed.name} is {list(packed.shape)}, which is no packing of {columns} columns in 4 or 8 bits."
        )
    return fitting[0]


def _bits_of(config: Mapping[str, Any], packed: TensorInfo, groups: int) -> int:
    """Bits that a compressed-tensors config lists for packed integers; 4 where it lists none. Of several
    those are meant whose groups of inputs make as many scales as there are.
    """
    listed = [
        (each["num_bits"], each.get("group_size"))
        for each in weights_of(config)
        if type(each.get("num_bits")) is int and each["num_bits"] > 0
        and each.get("type", "int") == "int" and each["format"] in (None, "pack-quantized")
    ]  # fmt: skip
    every = found = sorted({bits for bits, _ in listed})
    if len(every) > 1:
        fitting = {
            bits
            for bits, size in listed
            if groups == (packed.shape[1] * 32 // bits / size if type(size) is int and size > 0 else 1)
        }
        found = sorted(fitting)
    if len(found) != 1 and every:
        raise file_errors.QuantizationMalformed(
            f"The config lists layers of {', '.join(map(str, every))} bits, and the scales of {packed.name} "
            "do not tell which of these it is packed with."
        )
    return found[0] if found else 4


_HALVED = "at 4 bits (E2M1) each weight is off by up to a quarter of itself"


def gather_nvfp4(
    work: Gathering, name: str, packed: TensorInfo, scale: TensorInfo, whole: TensorInfo, divide: int
) -> None:
    """Four-bit floats in groups of 16, with one number for all of them."""
    outputs, inputs = packed.shape[0], packed.shape[1] * 2
    fits = packed.dtype == "U8" and scale.shape == (outputs, inputs // 16) and whole.numel == 1
    if not fits or inputs % 16:
        raise file_errors.QuantizationMalformed(
            f"{packed.name} and {scale.name} do not fit together as NVFP4."
        )
    parts = {"packed": packed, "scale": scale, "global": whole}
    work.add(
        name, (outputs, inputs), Coded("nvfp4", parts, {"divide": divide, "group": 16}), "NVFP4", _HALVED
    )


def _mxfp4(work: Gathering, name: str, packed: TensorInfo, scale: TensorInfo) -> None:
    """Four-bit floats in groups of 32 with a power of two each, by rows."""
    outputs, inputs = packed.shape[0], packed.shape[1] * 2
    if packed.dtype != "U8" or scale.shape != (outputs, inputs // 32) or inputs % 32:
        raise file_errors.QuantizationMalformed(
            f"{packed.name} and {scale.name} do not fit together as MXFP4."
        )
    coded = Coded("nvfp4", {"packed": packed, "scale": scale}, {"group": 32})
    work.add(name, (outputs, inputs), coded, "MXFP4", f"{_HALVED} or a twelfth of its group's scale")
