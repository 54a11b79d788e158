"""Quantised safetensors as the float tensors they stand for: stored parts are gathered under one name.

Which tensors belong together is told by their names and shapes; the config only says what those leave open
(the bits and zero points of GPTQ, the order of AWQ, the block size of FP8). What cannot be decoded is left to
be refused.
"""

from collections.abc import Mapping
from typing import Any

from merge import file_errors
from merge.checkpoint.four_bits import STATE, four_bit_matrices
from merge.checkpoint.gathering import (
    Decoding,
    Gathering,
    group_said,
    quantization_of,
    rounding,
    size_of,
    weights_of,
)
from merge.checkpoint.header import Coded, TensorInfo
from merge.checkpoint.packs import gather_nvfp4, gather_packed, shapes_of
from merge.checkpoint.words import gather_words

EIGHT_BIT_FLOATS = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_OUTPUT = {"float16": "F16", "bfloat16": "BF16", "float32": "BF16"}
_SCALES = ("_scale_inv", "_scale", ".scale", "_scales", "scale_weight", "scaled_fp8")
_ACTIVATIONS = frozenset({
    "input_scale", "output_scale", "input_zero_point", "output_zero_point", "k_scale", "v_scale", "q_scale",
    "prob_scale", "kv_cache_scaling_factor", "input_global_scale", "weight_format", "activation_scale",
    "input_scale_ub", "qscale_act", "scale_input", "scaled_fp8",
})  # fmt: skip
"""What quantised files hold beside weights: how activations are rounded, which a merge leaves behind."""
_CHANGING = frozenset({"bitmask", "comfy_quant", "_scale"})
"""What makes other numbers of the codes beside it: the places of kept weights, a description of its own, the
scale beside Quanto's ``_data``.
"""


def decoded_view(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], small: Mapping[str, bytes]
) -> tuple[dict[str, TensorInfo], Decoding | None]:
    """The tensors as floats under their logical names, and how they are decoded where any is. ``small`` are
    the contents of those that ``four_bits`` and ``packs`` ask for.

    Raises ``QuantizationMalformed`` where the parts of a tensor do not fit together.
    """
    names, states = tensors.keys(), {name: raw for name, raw in small.items() if STATE in name}
    eight = any(info.dtype in EIGHT_BIT_FLOATS for info in tensors.values())
    if not eight and not states and not any(name.endswith(_MARKS) for name in names):
        return dict(tensors), None
    dtype = _OUTPUT.get(str(_said_dtype(config)), "BF16")
    work = Gathering(dict(tensors), dtype, quantization_of(config), config, shapes_of(tensors, small))
    for name in list(names):
        stem, dot, leaf = name.rpartition(".")
        if leaf == "qweight":
            gather_words(work, stem + dot)
        elif leaf == "weight_packed":
            gather_packed(work, stem + dot)
        elif name.endswith("_blocks"):
            _blocks(work, name.removesuffix("_blocks"))
    for matrix in four_bit_matrices(tensors, states):
        work.add(matrix.name, matrix.shape, matrix.coded, matrix.scheme, matrix.loss)
    for info in list(work.left.values()):
        _eight_bits(work, info)
    if not work.losses or any(map(_undecoded, work.left.values())):
        return dict(tensors), None
    for name in [name for name in work.left if _is_of_activations(name)]:
        del work.left[name]
    _check_nothing_changes(work)
    order = {name: place for place, name in enumerate(tensors)}
    every = {**work.left, **work.made}
    first = {name: min(order[part.name] for part in info.stored) for name, info in every.items()}
    decoding = Decoding(", ".join(work.losses), "; ".join(dict.fromkeys(work.losses.values())))
    return {name: every[name] for name in sorted(every, key=first.__getitem__)}, decoding


def _undecoded(info: TensorInfo) -> bool:
    """Whether a weight is still codes, so that the model as a whole cannot be decoded."""
    return info.dtype in ("U8", "I8", "I32") and info.name.endswith("weight")


def _is_of_activations(name: str) -> bool:
    return name.rpartition(".")[2] in _ACTIVATIONS or name.endswith("_activation_scale")


def _is_changing(work: Gathering, name: str) -> bool:
    stem, dot, leaf = name.rpartition(".")
    return leaf in _CHANGING or ("scale" in leaf and stem + dot + "weight" in work.made)


def _check_nothing_changes(work: Gathering) -> None:
    """Refuses codes that are not all there is to the weights: scales of single inputs, say."""
    changing = next((name for name in work.left if _is_changing(work, name)), None)
    transforms = work.config.get("transform_config")
    if changing is None and isinstance(transforms, Mapping) and transforms.get("config_groups"):
        changing = "The config's transform_config"
    if changing is not None:
        raise file_errors.QuantizationMalformed(
            f"{changing} makes other weights of those that the codes stand for, which is not decoded; take "
            "the model as it was before it was quantised."
        )


_MARKS = (".qweight", ".weight_packed", "_blocks", ".SCB", *_SCALES)


def _said_dtype(config: Mapping[str, Any]) -> Any:
    return config.get("dtype", config.get("torch_dtype"))


def _blocks(work: Gathering, stem: str) -> None:
    """MXFP4 as gpt-oss stores it: rows of the parts are columns of the tensor."""
    blocks, scales = work.left[f"{stem}_blocks"], work.left.get(f"{stem}_scales")
    if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[3] != 16 or scales is None:
        return
    experts, columns, groups, _ = blocks.shape
    work.shaped(f"{stem}_scales", experts, columns, groups, dtype="U8")
    coded = Coded("mxfp4", {"blocks": blocks, "scales": scales}, {}, align=32)
    loss = (
        "at 4 bits (E2M1) each weight is off by up to a quarter of itself or a twelfth of its group's scale"
    )
    work.add(stem, (experts, groups * 32, columns), coded, "MXFP4", loss)


def _eight_bits(work: Gathering, info: TensorInfo) -> None:
    scale = _scale_of(work, info)
    second = work.left.get(f"{info.name}_scale_2")
    if info.dtype == "U8" and scale is not None and second is not None and len(info.shape) == 2:
        gather_nvfp4(work, info.name, info, scale, second, divide=0)
    elif info.dtype in EIGHT_BIT_FLOATS and not info.name.endswith(_SCALES):
        bits = (
            "3 bits of mantissa: up to 6.3 %" if "E4M3" in info.dtype else "2 bits of mantissa: up to 12.5 %"
        )
        _scaled(work, info, scale, info.dtype, f"FP8 with {bits} of each weight is rounded away")
    elif info.dtype == "I8" and scale is not None:
        _scaled(work, info, scale, "INT8", rounding(8))


def _scale_of(work: Gathering, info: TensorInfo) -> TensorInfo | None:
    stem = info.name.rpartition(".")[0]
    names = (
        *(info.name + end for end in ("_scale_inv", "_scale")),
        f"{stem}.scale",
        f"{stem}.scales",
        f"{stem}.SCB",
        f"{stem}.qscale_weight",
        f"{stem}.scale_weight",
    )
    return next((work.left[name] for name in names if name in work.left and name != info.name), None)


def _scaled(work: Gathering, info: TensorInfo, scale: TensorInfo | None, scheme: str, loss: str) -> None:
    parts, settings = {"weight": info}, {}
    if scale is not None:
        parts["scale"], settings = scale, _blocking(work, info, scale)
        zero = f"{info.name}_zero_point"
        if info.dtype == "I8" and zero in work.left:
            parts["zero"] = work.shaped(zero, *scale.shape, dtype="I8")
    work.add(info.name, info.shape, Coded("scaled", parts, settings), scheme, loss)


def _blocking(work: Gathering, info: TensorInfo, scale: TensorInfo) -> dict[str, int]:
    """The rectangle of a matrix that one scale holds for; a stack of matrices has a stack of scales."""
    columns = info.shape[-1] if info.shape else 1
    rows = info.shape[-2] if len(info.shape) > 1 else 1
    row_blocks, column_blocks = 1, 1
    if scale.numel != 1:
        flat = scale.shape == info.shape[: len(scale.shape)] and len(scale.shape) == len(info.shape) - 1
        shape = (*scale.shape, 1) if flat else scale.shape
        unlike = len(shape) != len(info.shape) or shape[:-2] != info.shape[:-2]
        if unlike or (info.numel and not scale.numel):
            raise file_errors.QuantizationMalformed(
                f"{scale.name} is {list(scale.shape)}, which is no scale for {info.name}, {list(info.shape)}."
            )
        row_blocks, column_blocks = (1, *shape)[-2:]
    listed = [each["block_structure"] for each in weights_of(work.config) if each.get("block_structure")]
    said = next((each for each in (work.config.get("weight_block_size"), *listed) if each), None)
    sizes = said if isinstance(said, list) and len(said) == 2 else [None, None]
    in_groups = group_said(work.config, columns, column_blocks)
    made = {
        "rows": rows, "row_blocks": row_blocks if scale.numel > 1 else 0,
        "block_rows": size_of(rows, row_blocks, sizes[0], scale),
        "block_columns": size_of(columns, column_blocks, sizes[1] or in_groups, scale),
    }  # fmt: skip
    return made | ({"divide": 127} if scale.name.endswith(".SCB") else {})
