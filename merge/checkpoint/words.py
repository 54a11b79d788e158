"""GPTQ and AWQ: integers packed into words, gathered with their scales and zero points."""

from collections.abc import Mapping
from typing import Any

from merge import file_errors
from merge.checkpoint.gathering import Gathering, rounding, size_of
from merge.checkpoint.header import Coded, TensorInfo


def gather_words(work: Gathering, stem: str) -> None:
    """GPTQ packs along the inputs, AWQ along the outputs: the scales are as wide as the codes, or not. The
    other two ways of AWQ are told by the config and by a tensor that only one of them has.
    """
    codes, scale = work.left[f"{stem}qweight"], work.left.get(f"{stem}scales")
    fast = f"{stem}scaled_zeros" in work.left
    dtype = "I16" if fast else "I32"
    if scale is None or len(scale.shape) != 2 or len(codes.shape) != 2 or codes.dtype != dtype:
        raise file_errors.QuantizationMalformed(
            f"{codes.name} is no matrix of {dtype[1:]}-bit words with a matrix of scales."
        )
    if fast:
        _awq_gemv_fast(work, stem, codes, scale)
    elif _awq_order(work.config) == "gemv":
        _awq_gemv(work, stem, codes, scale)
    elif codes.shape[1] == scale.shape[1]:
        _gptq(work, stem, codes, scale)
    else:
        _awq(work, stem, codes, scale)


def _awq(work: Gathering, stem: str, codes: TensorInfo, scale: TensorInfo) -> None:
    (groups, outputs), inputs = scale.shape, codes.shape[0]
    zeros = work.shaped(f"{stem}qzeros", groups, outputs // 8, dtype="I32")
    if codes.shape[1] * 8 != outputs or not groups or inputs % groups:
        raise file_errors.QuantizationMalformed(f"{codes.name} and {scale.name} do not fit together as AWQ.")
    coded = Coded("awq", {"codes": codes, "zeros": zeros, "scale": scale}, {}, align=8)
    work.add(f"{stem}weight", (outputs, inputs), coded, "AWQ (4 bits)", rounding(4))


def _awq_gemv(work: Gathering, stem: str, codes: TensorInfo, scale: TensorInfo) -> None:
    outputs, inputs = codes.shape[0], codes.shape[1] * 8
    size, filled = _awq_groups(work, codes, inputs)
    scale = work.shaped(scale.name, outputs, filled)
    zeros = work.shaped(f"{stem}qzeros", outputs, filled // 8, dtype="I32")
    coded = Coded("awq_gemv", {"codes": codes, "zeros": zeros, "scale": scale}, {"group": size})
    work.add(f"{stem}weight", (outputs, inputs), coded, "AWQ gemv (4 bits)", rounding(4))


def _awq_gemv_fast(work: Gathering, stem: str, codes: TensorInfo, scale: TensorInfo) -> None:
    outputs, inputs = codes.shape[0] * 4, codes.shape[1]
    size, filled = _awq_groups(work, codes, inputs)
    scale = work.shaped(scale.name, filled, outputs)
    shift = work.shaped(f"{stem}scaled_zeros", filled, outputs)
    if inputs % 64:
        raise file_errors.QuantizationMalformed(
            f"The {inputs} inputs of {codes.name} are no multiple of 64, as AWQ's gemv_fast packs them."
        )
    parts = {"codes": codes, "scale": scale, "shift": shift}
    coded = Coded("awq_gemv_fast", parts, {"group": size}, align=4)
    work.add(f"{stem}weight", (outputs, inputs), coded, "AWQ gemv_fast (4 bits)", rounding(4))


def _awq_order(config: Mapping[str, Any]) -> str:
    said = next((config[key] for key in ("version", "format", "checkpoint_format") if key in config), "")
    return str(said).lower()


def _awq_groups(work: Gathering, codes: TensorInfo, inputs: int) -> tuple[int, int]:
    """Inputs of a group, which the config says, and the groups that a row has room for: whole words of eight,
    two of them where a group has 64 inputs, four where it has 32.
    """
    said = next((work.config[key] for key in ("group_size", "q_group_size") if key in work.config), 128)
    size = inputs if said == -1 else said
    if type(size) is not int or size < 32 or (size < 128 and size not in (32, 64)) or inputs % size:
        raise file_errors.QuantizationMalformed(
            f"The {inputs} inputs of {codes.name} are not groups of {said}, as the config's group_size says."
        )
    step = 8 * max(1, 128 // size)
    return size, -(-inputs // size // step) * step


def _gptq(work: Gathering, stem: str, codes: TensorInfo, scale: TensorInfo) -> None:
    groups, outputs = scale.shape
    zeros = work.left.get(f"{stem}qzeros")
    if zeros is None or len(zeros.shape) != 2 or zeros.dtype != "I32" or not outputs:
        raise file_errors.QuantizationMalformed(f"{codes.name} has no matrix of zero points ({stem}qzeros).")
    bits, rest = divmod(zeros.shape[1] * 32, outputs)
    if rest or bits not in (2, 3, 4, 8) or zeros.shape[0] != groups:
        raise file_errors.QuantizationMalformed(
            f"{codes.name} is packed with {zeros.shape[1] * 32 / outputs:g} bits; 2, 3, 4, 8 can be decoded."
        )
    inputs, rest = divmod(codes.shape[0] * 32, bits)
    if rest or not groups:
        raise file_errors.QuantizationMalformed(
            f"The {inputs} inputs of {codes.name} are not {groups} groups of whole codes."
        )
    parts = {"codes": codes, "zeros": zeros, "scale": scale}
    if f"{stem}g_idx" in work.left:
        parts["groups"] = work.shaped(f"{stem}g_idx", inputs)
    size = size_of(inputs, groups, work.config.get("group_size"), scale)
    coded = Coded("gptq", parts, {"bits": bits, "plus": int(_less_one(work.config)), "group": size})
    work.add(f"{stem}weight", (outputs, inputs), coded, f"GPTQ ({bits} bits)", rounding(bits))


def _less_one(config: Mapping[str, Any]) -> bool:
    """Whether zero points are stored less one: as GPTQ's first format does it, and AutoRound where it packs
    like that.
    """
    if "round" in str(config.get("quant_method")):
        return "gptq" in str(config.get("packing_format", config.get("backend", "gptq")))
    return bool(config.get("checkpoint_format", config.get("format")) != "gptq_v2")
