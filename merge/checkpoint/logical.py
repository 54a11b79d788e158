"""Quantised safetensors as the float tensors they stand for: stored parts are gathered under one name.

Which tensors belong together is told by their names and shapes; the config only says what those leave open
(the bits and zero points of GPTQ, the order of AWQ, the block size of FP8). What cannot be decoded is left to
be refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from merge import file_errors
from merge.checkpoint.four_bits import four_bit_matrices
from merge.checkpoint.header import Coded, TensorInfo

EIGHT_BIT_FLOATS = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_OUTPUT = {"float16": "F16", "bfloat16": "BF16", "float32": "BF16"}
_BLOCK = 128
"""Rows and columns that a scale holds for in FP8 files whose config does not say."""
_SCALES = ("_scale_inv", "_scale", ".scale", "_scales")
_ACTIVATIONS = frozenset({
    "input_scale", "output_scale", "input_zero_point", "output_zero_point", "k_scale", "v_scale", "q_scale",
    "prob_scale", "kv_cache_scaling_factor", "input_global_scale", "weight_format", "activation_scale",
    "input_scale_ub",
})  # fmt: skip
"""What quantised files hold beside weights: how activations are rounded, which a merge leaves behind."""


@dataclass(frozen=True)
class Decoding:
    """How a model's stored codes become numbers: the scheme's name, and what is known of its loss."""

    scheme: str
    loss: str

    def as_dict(self) -> dict[str, str]:
        """Plain JSON for people."""
        return {"scheme": self.scheme, "loss": self.loss}


@dataclass
class _Gathering:
    """Tensors that wait to be gathered, and what they became."""

    left: dict[str, TensorInfo]
    dtype: str
    config: Mapping[str, Any]
    made: dict[str, TensorInfo] = field(default_factory=dict)
    losses: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, shape: tuple[int, ...], coded: Coded, scheme: str, loss: str) -> None:
        """Puts a logical tensor in the place of its parts."""
        main = next(iter(coded.parts.values()))
        self.made[name] = TensorInfo(name, self.dtype, shape, main.file, main.begin, main.end, coded)
        self.losses.setdefault(scheme, loss)
        for part in coded.parts.values():
            self.left.pop(part.name, None)

    def shaped(self, name: str, *shape: int, dtype: str | None = None) -> TensorInfo:
        """The part of that name, which must have that shape (and dtype)."""
        part = self.left.get(name)
        if part is None:
            raise file_errors.QuantizationMalformed(f"{name} is missing beside the codes it belongs to.")
        if part.shape != shape or dtype not in (None, part.dtype):
            raise file_errors.QuantizationMalformed(
                f"{name} is {part.dtype} {list(part.shape)}, but {dtype + ' ' if dtype else ''}{list(shape)} "
                "belongs to its codes."
            )
        return part


def decoded_view(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], states: Mapping[str, bytes]
) -> tuple[dict[str, TensorInfo], Decoding | None]:
    """The tensors as floats under their logical names, and how they are decoded where any is. ``states`` are
    those that ``four_bits`` asks for.

    Raises ``QuantizationMalformed`` where the parts of a tensor do not fit together.
    """
    names = tensors.keys()
    eight = any(info.dtype in EIGHT_BIT_FLOATS for info in tensors.values())
    if not eight and not states and not any(name.endswith(_MARKS) for name in names):
        return dict(tensors), None
    work = _Gathering(dict(tensors), _OUTPUT.get(str(_said_dtype(config)), "BF16"), _quantization(config))
    for name in list(names):
        stem, dot, leaf = name.rpartition(".")
        if leaf == "qweight":
            _words(work, stem + dot)
        elif leaf == "weight_packed":
            _packed(work, stem + dot)
        elif name.endswith("_blocks"):
            _blocks(work, name.removesuffix("_blocks"))
    for matrix in four_bit_matrices(tensors, states):
        work.add(matrix.name, matrix.shape, matrix.coded, matrix.scheme, matrix.loss)
    for info in list(work.left.values()):
        _eight_bits(work, info)
    if not work.losses or any(map(_undecoded, work.left.values())):
        return dict(tensors), None
    for name in [name for name in work.left if name.rpartition(".")[2] in _ACTIVATIONS]:
        del work.left[name]
    order = {name: place for place, name in enumerate(tensors)}
    every = {**work.left, **work.made}
    first = {name: min(order[part.name] for part in info.stored) for name, info in every.items()}
    decoding = Decoding(", ".join(work.losses), "; ".join(dict.fromkeys(work.losses.values())))
    return {name: every[name] for name in sorted(every, key=first.__getitem__)}, decoding


def _undecoded(info: TensorInfo) -> bool:
    """Whether a weight is still codes, so that the model as a whole cannot be decoded."""
    return info.dtype in ("U8", "I8", "I32") and info.name.endswith("weight")


_MARKS = (".qweight", ".weight_packed", "_blocks", ".SCB", *_SCALES)


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    places = [place for place in (config, config.get("text_config")) if isinstance(place, Mapping)]
    keys = ("quantization_config", "compression_config")  # as older files of compressed-tensors call it
    said = (place.get(key) for place in places for key in keys)
    return next((found for found in said if isinstance(found, Mapping)), {})


def _said_dtype(config: Mapping[str, Any]) -> Any:
    return config.get("dtype", config.get("torch_dtype"))


def rounding(bits: int) -> str:
    """What even steps of so many bits lose at most."""
    share = 100 / (2**bits - 1)
    return f"at {bits} bits each weight is off by up to {share:.2g} % of the largest of its group"


def _words(work: _Gathering, stem: str) -> None:
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


def _awq(work: _Gathering, stem: str, codes: TensorInfo, scale: TensorInfo) -> None:
    (groups, outputs), inputs = scale.shape, codes.shape[0]
    zeros = work.shaped(f"{stem}qzeros", groups, outputs // 8, dtype="I32")
    if codes.shape[1] * 8 != outputs or not groups or inputs % groups:
        raise file_errors.QuantizationMalformed(f"{codes.name} and {scale.name} do not fit together as AWQ.")
    coded = Coded("awq", {"codes": codes, "zeros": zeros, "scale": scale}, {}, align=8)
    work.add(f"{stem}weight", (outputs, inputs), coded, "AWQ (4 bits)", rounding(4))


def _awq_gemv(work: _Gathering, stem: str, codes: TensorInfo, scale: TensorInfo) -> None:
    outputs, inputs = codes.shape[0], codes.shape[1] * 8
    size, filled = _awq_groups(work, codes, inputs)
    scale = work.shaped(scale.name, outputs, filled)
    zeros = work.shaped(f"{stem}qzeros", outputs, filled // 8, dtype="I32")
    coded = Coded("awq_gemv", {"codes": codes, "zeros": zeros, "scale": scale}, {"group": size})
    work.add(f"{stem}weight", (outputs, inputs), coded, "AWQ gemv (4 bits)", rounding(4))


def _awq_gemv_fast(work: _Gathering, stem: str, codes: TensorInfo, scale: TensorInfo) -> None:
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


def _awq_groups(work: _Gathering, codes: TensorInfo, inputs: int) -> tuple[int, int]:
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


def _gptq(work: _Gathering, stem: str, codes: TensorInfo, scale: TensorInfo) -> None:
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
    if rest or not groups or inputs % groups:
        raise file_errors.QuantizationMalformed(
            f"The {inputs} inputs of {codes.name} are not {groups} equal groups."
        )
    parts = {"codes": codes, "zeros": zeros, "scale": scale}
    if f"{stem}g_idx" in work.left:
        parts["groups"] = work.shaped(f"{stem}g_idx", inputs)
    plus = int(work.config.get("checkpoint_format") != "gptq_v2")
    coded = Coded("gptq", parts, {"bits": bits, "plus": plus})
    work.add(f"{stem}weight", (outputs, inputs), coded, f"GPTQ ({bits} bits)", rounding(bits))


def _packed(work: _Gathering, stem: str) -> None:
    packed, scale = work.left[f"{stem}weight_packed"], work.left.get(f"{stem}weight_scale")
    if scale is None or len(packed.shape) != 2 or len(scale.shape) != 2 or packed.shape[0] != scale.shape[0]:
        raise file_errors.QuantizationMalformed(
            f"{packed.name} has no matrix of scales ({stem}weight_scale)."
        )
    outputs, groups = scale.shape
    if packed.dtype == "U8":
        whole = work.shaped(f"{stem}weight_global_scale", 1)
        _nvfp4(work, f"{stem}weight", packed, scale, whole, divide=1)
        return
    bits = _bits_of(work.config, packed, groups)
    inputs = packed.shape[1] * 32 // bits
    if packed.dtype != "I32" or bits not in (4, 8) or not groups or inputs % groups:
        raise file_errors.QuantizationMalformed(
            f"{packed.name} ({bits} bits) and {scale.name} do not fit together."
        )
    parts = {"packed": packed, "scale": scale}
    if f"{stem}weight_zero_point" in work.left:
        words = -(-outputs * bits // 32)
        parts["zeros"] = work.shaped(f"{stem}weight_zero_point", words, groups, dtype="I32")
    if f"{stem}weight_g_idx" in work.left:
        parts["groups"] = work.shaped(f"{stem}weight_g_idx", inputs)
    coded = Coded("packed", parts, {"bits": bits, "group": inputs // groups})
    work.add(f"{stem}weight", (outputs, inputs), coded, f"compressed-tensors ({bits} bits)", rounding(bits))
    work.left.pop(f"{stem}weight_shape", None)


def _bits_of(config: Mapping[str, Any], packed: TensorInfo, groups: int) -> int:
    """Bits that a compressed-tensors config lists for packed integers; 4 where it lists none. Of several
    those are meant whose groups of inputs make as many scales as there are.
    """
    listed = [
        (each["num_bits"], each.get("group_size"))
        for each in _weights_of(config)
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


def _weights_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a compressed-tensors config says of the weights of each group of layers, with their ``format``."""
    groups = config.get("config_groups")
    each = groups.values() if isinstance(groups, Mapping) else ()
    found = [group for group in each if isinstance(group, Mapping)]
    said = [(group.get("weights"), group.get("format")) for group in found]
    return [{**weights, "format": form} for weights, form in said if isinstance(weights, Mapping)]


def _blocks(work: _Gathering, stem: str) -> None:
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


def _nvfp4(
    work: _Gathering, name: str, packed: TensorInfo, scale: TensorInfo, whole: TensorInfo, divide: int
) -> None:
    outputs, inputs = packed.shape[0], packed.shape[1] * 2
    if scale.shape != (outputs, inputs // 16) or inputs % 16 or whole.numel != 1:
        raise file_errors.QuantizationMalformed(
            f"{packed.name} and {scale.name} do not fit together as NVFP4."
        )
    coded = Coded("nvfp4", {"packed": packed, "scale": scale, "global": whole}, {"divide": divide})
    work.add(
        name,
        (outputs, inputs),
        coded,
        "NVFP4",
        "at 4 bits (E2M1) each weight is off by up to a quarter of itself",
    )


def _eight_bits(work: _Gathering, info: TensorInfo) -> None:
    scale = _scale_of(work, info)
    second = work.left.get(f"{info.name}_scale_2")
    if info.dtype == "U8" and scale is not None and second is not None and len(info.shape) == 2:
        _nvfp4(work, info.name, info, scale, second, divide=0)
    elif info.dtype in EIGHT_BIT_FLOATS and not info.name.endswith(_SCALES):
        bits = (
            "3 bits of mantissa: up to 6.3 %" if "E4M3" in info.dtype else "2 bits of mantissa: up to 12.5 %"
        )
        _scaled(work, info, scale, info.dtype, f"FP8 with {bits} of each weight is rounded away")
    elif info.dtype == "I8" and scale is not None:
        _scaled(work, info, scale, "INT8", rounding(8))


def _scale_of(work: _Gathering, info: TensorInfo) -> TensorInfo | None:
    stem = info.name.rpartition(".")[0]
    names = (
        *(info.name + end for end in ("_scale_inv", "_scale")),
        f"{stem}.scale",
        f"{stem}.scales",
        f"{stem}.SCB",
    )
    return next((work.left[name] for name in names if name in work.left and name != info.name), None)


def _scaled(work: _Gathering, info: TensorInfo, scale: TensorInfo | None, scheme: str, loss: str) -> None:
    parts, settings = {"weight": info}, {}
    if scale is not None:
        parts["scale"], settings = scale, _blocking(work, info, scale)
        zero = f"{info.name}_zero_point"
        if info.dtype == "I8" and zero in work.left:
            parts["zero"] = work.shaped(zero, *scale.shape, dtype="I8")
    work.add(info.name, info.shape, Coded("scaled", parts, settings), scheme, loss)


def _blocking(work: _Gathering, info: TensorInfo, scale: TensorInfo) -> dict[str, int]:
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
    listed = [each["block_structure"] for each in _weights_of(work.config) if each.get("block_structure")]
    said = next((each for each in (work.config.get("weight_block_size"), *listed) if each), None)
    sizes = said if isinstance(said, list) and len(said) == 2 else [None, None]
    made = {
        "rows": rows, "row_blocks": row_blocks if scale.numel > 1 else 0,
        "block_rows": _size(rows, row_blocks, sizes[0], scale),
        "block_columns": _size(columns, column_blocks, sizes[1], scale),
    }  # fmt: skip
    return made | ({"divide": 127} if scale.name.endswith(".SCB") else {})


def _size(length: int, blocks: int, said: Any, scale: TensorInfo) -> int:
    """Entries that a scale holds for along one side: all, as the config says, or an equal part."""
    if blocks == 1:
        return max(1, length)
    if type(said) is int and said > 0 and -(-length // said) == blocks:
        return said
    if blocks and length % blocks == 0:
        return max(1, length // blocks)
    if -(-length // _BLOCK) == blocks:
        return _BLOCK
    raise file_errors.QuantizationMalformed(f"{scale.name}: {blocks} scales do not divide {length} entries.")
