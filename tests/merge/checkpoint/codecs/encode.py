"""Quantised tensors made from random codes, each with the numbers they stand for in float64, word by word.

Everything is written from the formats' definitions, with plain loops, and shares nothing with the engine.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.merge.checkpoint.codecs.case import Case
from tests.merge.checkpoint.codecs.encode_eight import (
    blocks_unsaid,
    deepseek,
    experts,
    int8,
    int8_zeros,
    mx_eight,
    named_otherwise,
    per_row,
    per_tensor,
    plain,
    vector,
)

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _words(codes: np.ndarray[Any, Any], bits: int) -> Tensor:
    """Packs the last axis into 32-bit words from the lowest bits upwards."""
    if bits == 3:
        return _three_words(codes)
    per = 32 // bits
    grouped = codes.reshape(*codes.shape[:-1], -1, per).astype(np.uint64)
    words = sum(grouped[..., place] << np.uint64(bits * place) for place in range(per))
    return torch.from_numpy(np.asarray(words, dtype=np.uint64).astype(np.uint32).view(np.int32))


def _three_words(codes: np.ndarray[Any, Any]) -> Tensor:
    """32 codes of three bits in three words: ten, two bits of the eleventh; its third bit, ten, a bit of the
    22nd; its other two bits, ten.
    """
    made = np.zeros((*codes.shape[:-1], codes.shape[-1] // 32, 3), dtype=np.uint64)
    grouped = codes.reshape(*codes.shape[:-1], -1, 32).astype(np.uint64)
    for place in range(10):
        made[..., 0] |= grouped[..., place] << np.uint64(3 * place)
        made[..., 1] |= grouped[..., 11 + place] << np.uint64(3 * place + 1)
        made[..., 2] |= grouped[..., 22 + place] << np.uint64(3 * place + 2)
    made[..., 0] |= (grouped[..., 10] & np.uint64(3)) << np.uint64(30)
    made[..., 1] |= grouped[..., 10] >> np.uint64(2) | (grouped[..., 21] & np.uint64(1)) << np.uint64(31)
    made[..., 2] |= grouped[..., 21] >> np.uint64(1)
    words = made.reshape(*codes.shape[:-1], -1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def gptq(
    bits: int = 4,
    version: str | None = None,
    reorder: bool = False,
    outputs: int = 48,
    groups: int = 4,
    inputs: int = 64,
    size: int = 0,
) -> Case:
    """48 outputs, 64 inputs in 4 groups (or others), of which the last may be smaller; zero points over their
    whole range.
    """
    rng, size = np.random.default_rng(bits), size or inputs // groups
    codes = rng.integers(0, 2**bits, (inputs, outputs))
    zeros = rng.integers(0, 2**bits, (groups, outputs))
    scale = torch.from_numpy(rng.uniform(0.01, 0.1, (groups, outputs))).half()
    group = rng.permutation(np.arange(inputs) // size) if reorder else np.arange(inputs) // size
    shift = 0 if version == "gptq_v2" else 1
    stored = {
        "m.qweight": _words(codes.T, bits).T.contiguous(),
        "m.qzeros": _words((zeros - shift) % 2**bits, bits),
        "m.scales": scale,
        "m.g_idx": torch.from_numpy(group.astype(np.int32)),
    }
    wanted = np.zeros((outputs, inputs))
    for out in range(outputs):
        for inner in range(inputs):
            g = group[inner]
            wanted[out, inner] = float(scale[g, out]) * (float(codes[inner, out]) - float(zeros[g, out]))
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "checkpoint_format": version or "gptq",
        "group_size": size,
    }
    return Case(stored, config, "m.weight", wanted, f"GPTQ ({bits} bits)")


def auto_round(asymmetric: bool) -> Case:
    """AutoRound, which names no groups and stores zero points as they are unless told to pack as GPTQ does:
    96 inputs, a group of 64 and one of 32.
    """
    made = gptq(4, "gptq_v2" if asymmetric else None, groups=2, inputs=96, size=64)
    form = "auto_round" if asymmetric else "auto_round:auto_gptq"
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 64, "packing_format": form}
    stored = {name: part for name, part in made.stored.items() if name != "m.g_idx"}
    return Case(stored, config, made.name, made.wanted, made.scheme)


def awq(groups: int = 2) -> Case:
    """48 outputs, 64 inputs in 2 groups (or others)."""
    rng = np.random.default_rng(7)
    codes, zeros = rng.integers(0, 16, (64, 48)), rng.integers(0, 16, (groups, 48))
    scale = torch.from_numpy(rng.uniform(0.01, 0.1, (groups, 48))).half()

    def packed(values: np.ndarray[Any, Any]) -> Tensor:
        words = np.zeros((values.shape[0], values.shape[1] // 8), dtype=np.uint32)
        for word in range(words.shape[1]):
            for place, output in enumerate(AWQ_ORDER):
                words[:, word] |= (values[:, word * 8 + output] << 4 * place).astype(np.uint32)
        return torch.from_numpy(words.view(np.int32))

    wanted = np.zeros((48, 64))
    for out in range(48):
        for inner in range(64):
            g = inner * groups // 64
            wanted[out, inner] = float(scale[g, out]) * (float(codes[inner, out]) - float(zeros[g, out]))
    stored = {"m.qweight": packed(codes), "m.qzeros": packed(zeros), "m.scales": scale}
    return Case(stored, {"quant_method": "awq", "bits": 4}, "m.weight", wanted, "AWQ (4 bits)")


def _awq_numbers(inputs: int, size: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Codes (8, inputs), zero points and scales (8, groups), and the numbers that these stand for."""
    rng, groups = np.random.default_rng(inputs + size), inputs // size
    codes, zeros = rng.integers(0, 16, (8, inputs)), rng.integers(0, 16, (8, groups))
    scale = rng.uniform(0.01, 0.1, (8, groups)).astype(np.float16)
    wanted = np.zeros((8, inputs))
    for out in range(8):
        for inner in range(inputs):
            g = inner // size
            wanted[out, inner] = float(scale[out, g]) * (float(codes[out, inner]) - float(zeros[out, g]))
    return codes, zeros, scale, wanted


def _awq_room(groups: int, size: int) -> int:
    """Groups that AutoAWQ leaves room for: words of eight, as many as 128 inputs have groups."""
    words = -(-groups // 8)
    while size < 128 and words % (128 // size):
        words += 1
    return 8 * words


def awq_gemv(inputs: int = 192, size: int = 64, said: int | None = None, name: str = "version") -> Case:
    """Eight outputs, rows of words, with room for more groups than there are."""
    codes, zeros, scale, wanted = _awq_numbers(inputs, size)
    room = _awq_room(inputs // size, size)
    wide_zeros = np.full((8, room), 0)
    wide_zeros[:, : inputs // size] = zeros
    wide_scale = np.zeros((8, room), dtype=np.float16)
    wide_scale[:, : inputs // size] = scale
    stored = {
        "m.qweight": _words(codes, 4), "m.qzeros": _words(wide_zeros, 4),
        "m.scales": torch.from_numpy(wide_scale),
    }  # fmt: skip
    config = {"quant_method": "awq", "bits": 4, name: "gemv", "group_size": said or size}
    return Case(stored, config, "m.weight", wanted, "AWQ gemv (4 bits)")


def awq_gemv_fast(inputs: int = 256, size: int = 128) -> Case:
    """Two lines of four outputs; of every eight inputs the first pair, then the second, ... of 32 inputs."""
    codes, zeros, scale, wanted = _awq_numbers(inputs, size)
    order = []
    for pair in range(4):
        order += [at for at in range(32) if at % 8 == 2 * pair]
        order += [at for at in range(32) if at % 8 == 2 * pair + 1]
    lines = []
    for line in range(2):
        words = []
        for begin in range(0, inputs, 64):
            for out in range(4 * line, 4 * line + 4):
                lying = [int(codes[out, begin + half + at]) for half in (0, 32) for at in order]
                for four in range(0, 64, 4):
                    words.append(sum(lying[four + place] << 4 * place for place in range(4)))
        lines.append(words)
    room = _awq_room(inputs // size, size)
    wide = {name: np.zeros((room, 8), dtype=np.float16) for name in ("scales", "scaled_zeros")}
    wide["scales"][: inputs // size] = scale.T
    wide["scaled_zeros"][: inputs // size] = -(scale.astype(np.float32) * zeros).T
    for out in range(8):
        for inner in range(inputs):
            g = inner // size
            shift = float(wide["scaled_zeros"][g, out])
            wanted[out, inner] = float(scale[out, g]) * float(codes[out, inner]) + shift
    stored = {f"m.{name}": torch.from_numpy(values) for name, values in wide.items()}
    stored["m.qweight"] = torch.from_numpy(np.array(lines, dtype=np.uint16).view(np.int16))
    config = {"quant_method": "awq", "bits": 4, "version": "gemv_fast", "group_size": size}
    return Case(stored, config, "m.weight", wanted, "AWQ gemv_fast (4 bits)")


def packed(
    bits: int = 4, zeros: bool = False, reorder: bool = False, outputs: int = 24, inputs: int = 64
) -> Case:
    """compressed-tensors: 24 outputs and 64 inputs (or others) in two groups of 32, of which the last may be
    smaller; symmetric, or with zeros.
    """
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 2**bits, (outputs, inputs))
    scale = torch.from_numpy(rng.uniform(0.01, 0.1, (outputs, 2))).bfloat16()
    zero = rng.integers(0, 2**bits, (outputs, 2)) if zeros else np.full((outputs, 2), 2 ** (bits - 1))
    group = rng.permutation(np.arange(inputs) // 32) if reorder else np.arange(inputs) // 32
    wanted = np.zeros((outputs, inputs))
    for out in range(outputs):
        for inner in range(inputs):
            g = group[inner]
            wanted[out, inner] = float(scale[out, g]) * (float(codes[out, inner]) - float(zero[out, g]))
    room = np.pad(codes, ((0, 0), (0, -inputs % (32 // bits))))
    stored = {
        "m.weight_packed": _words(room, bits), "m.weight_scale": scale,
        "m.weight_shape": torch.tensor([outputs, inputs]),
    }  # fmt: skip
    if zeros:
        filled = np.concatenate([zero, np.zeros((-outputs % (32 // bits), 2), dtype=zero.dtype)])
        stored["m.weight_zero_point"] = _words(filled.T, bits).T.contiguous()
    if reorder:
        stored["m.weight_g_idx"] = torch.from_numpy(group.astype(np.int32))
    weights = {"num_bits": bits, "group_size": 32, "symmetric": not zeros}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    return Case(stored, config, "m.weight", wanted, f"compressed-tensors ({bits} bits)")


def _four_bit(code: int) -> float:
    return -E2M1[code - 8] if code > 7 else E2M1[code]


def mxfp4() -> Case:
    """gpt-oss: 2 experts of (64, 6), stored by columns in groups of 32."""
    blocks = torch.randint(0, 256, (2, 6, 2, 16), dtype=torch.uint8)
    scales = torch.randint(118, 130, (2, 6, 2), dtype=torch.uint8)
    wanted = np.zeros((2, 64, 6))
    for expert, column, group, byte in np.ndindex(2, 6, 2, 16):
        code = int(blocks[expert, column, group, byte])
        scale = 2.0 ** (int(scales[expert, column, group]) - 127)
        wanted[expert, group * 32 + byte * 2, column] = _four_bit(code & 15) * scale
        wanted[expert, group * 32 + byte * 2 + 1, column] = _four_bit(code >> 4) * scale
    stored = {"m.gate_up_proj_blocks": blocks, "m.gate_up_proj_scales": scales}
    return Case(stored, {"quant_method": "mxfp4"}, "m.gate_up_proj", wanted, "MXFP4")


def nvfp4(divide: bool = False) -> Case:
    """Groups of 16 with an eight-bit float each, and one number for all."""
    codes = torch.randint(0, 256, (6, 16), dtype=torch.uint8)
    scale = (torch.rand(6, 2) + 0.5).to(torch.float8_e4m3fn)
    whole = torch.tensor([8.0])
    wanted = np.zeros((6, 32))
    for row, byte in np.ndindex(6, 16):
        each = float(scale[row, byte // 8]) * (1 / 8 if divide else 8.0)
        wanted[row, byte * 2] = _four_bit(int(codes[row, byte]) & 15) * each
        wanted[row, byte * 2 + 1] = _four_bit(int(codes[row, byte]) >> 4) * each
    names = ("m.weight_packed", "m.weight_global_scale") if divide else ("m.weight", "m.weight_scale_2")
    stored = {names[0]: codes, "m.weight_scale": scale, names[1]: whole}
    config = {"quant_method": "compressed-tensors" if divide else "modelopt"}
    return Case(stored, config, "m.weight", wanted, "NVFP4")


def mxfp4_rows() -> Case:
    """compressed-tensors: groups of 32 along the rows, with a power of two each."""
    codes = torch.randint(0, 256, (6, 32), dtype=torch.uint8)
    scale = torch.randint(118, 130, (6, 2), dtype=torch.uint8)
    wanted = np.zeros((6, 64))
    for row, byte in np.ndindex(6, 32):
        each = 2.0 ** (int(scale[row, byte // 16]) - 127)
        wanted[row, byte * 2] = _four_bit(int(codes[row, byte]) & 15) * each
        wanted[row, byte * 2 + 1] = _four_bit(int(codes[row, byte]) >> 4) * each
    stored = {"m.weight_packed": codes, "m.weight_scale": scale}
    return Case(stored, {"quant_method": "compressed-tensors"}, "m.weight", wanted, "MXFP4")


def bitsandbytes(
    kind: str = "nf4", nested: bool = True, columns: int = 48, kept: str = "uint8", offset: float = 0.3
) -> Case:
    """20 rows in blocks of 64 entries that run on from row to row, of which 4 scales share one."""
    rng = np.random.default_rng(9)
    entries, block, share = 20 * columns, 64, 4
    blocks = -(-entries // block)
    codes = rng.integers(0, 16, entries)
    table, bytes_table = np.sort(rng.uniform(-1, 1, 16)), np.sort(rng.uniform(-0.2, 0.2, 256))
    scales, groups = rng.integers(0, 256, blocks), rng.uniform(0.5, 1, -(-blocks // share))
    floats = rng.uniform(0.01, 1, blocks)
    values = [np.float32(each) for each in table]
    wanted = np.zeros(entries)
    for at in range(entries):
        of = at // block
        coded = float(np.float32(bytes_table[scales[of]])) * float(np.float32(groups[of // share])) + offset
        wanted[at] = float(values[codes[at]]) * (coded if nested else float(np.float32(floats[of])))
    filled = np.append(codes, 0) if entries % 2 else codes
    packed = torch.from_numpy((filled[0::2] * 16 + filled[1::2]).astype(np.uint8))
    said: dict[str, Any] = {
        "quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [20, columns],
    }  # fmt: skip
    stored = {
        "m.weight": packed.view(getattr(torch, kept))[:, None],
        "m.weight.absmax": torch.from_numpy(scales.astype(np.uint8) if nested else floats.astype(np.float32)),
        "m.weight.quant_map": torch.from_numpy(table.astype(np.float32)),
    }
    if nested:
        said |= {"nested_blocksize": share, "nested_dtype": "float32", "nested_offset": offset}
        stored["m.weight.nested_absmax"] = torch.from_numpy(groups.astype(np.float32))
        stored["m.weight.nested_quant_map"] = torch.from_numpy(bytes_table.astype(np.float32))
    text = json.dumps(said).encode()
    stored[f"m.weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return Case(stored, config, "m.weight", wanted.reshape(20, columns), f"bitsandbytes {kind.upper()}")


CASES: Mapping[str, Callable[[], Case]] = {
    "gptq4": gptq,
    "gptq8": lambda: gptq(8),
    "gptq2": lambda: gptq(2),
    "gptq3": lambda: gptq(3, outputs=96),
    "gptq3_reordered": lambda: gptq(3, "gptq_v2", True, 64),
    "gptq4_v2": lambda: gptq(4, "gptq_v2"),
    "gptq4_reordered": lambda: gptq(4, None, True),
    "gptq4_one_group": lambda: gptq(groups=1),
    "gptq3_smaller_last_group": lambda: gptq(3, groups=3, outputs=64, inputs=160, size=64),
    "gptq4_smaller_last_group_reordered": lambda: gptq(reorder=True, groups=3, inputs=160, size=64),
    "auto_round": lambda: auto_round(asymmetric=False),
    "auto_round_asymmetric": lambda: auto_round(asymmetric=True),
    "awq": awq,
    "awq_one_group": lambda: awq(1),
    "awq_gemv": awq_gemv,
    "awq_gemv_wide": lambda: awq_gemv(1280, 128, name="format"),
    "awq_gemv_small": lambda: awq_gemv(128, 64),
    "awq_gemv_one_group": lambda: awq_gemv(160, 160, -1),
    "awq_gemv_fast": awq_gemv_fast,
    "awq_gemv_fast_small": lambda: awq_gemv_fast(192, 32),
    "packed4": packed,
    "packed8": lambda: packed(8),
    "packed4_zeros": lambda: packed(4, True, outputs=21),
    "packed8_zeros": lambda: packed(8, True),
    "packed4_reordered": lambda: packed(4, True, True),
    "packed4_reordered_symmetric": lambda: packed(4, reorder=True),
    "packed4_filled_up": lambda: packed(inputs=59),
    "packed8_filled_up_zeros": lambda: packed(8, True, inputs=63, outputs=21),
    "packed4_filled_up_reordered": lambda: packed(4, True, True, inputs=60),
    "deepseek": deepseek,
    "per_tensor": per_tensor,
    "per_row": per_row,
    "vector": vector,
    "scale_of_mistral": lambda: named_otherwise("m.qscale_weight", "m.qscale_act"),
    "scale_of_comfy": lambda: named_otherwise("m.scale_weight", "m.scale_input", "scaled_fp8"),
    "blocks_unsaid": blocks_unsaid,
    "experts": experts,
    "plain_e4m3": plain,
    "plain_e5m2": lambda: plain(torch.float8_e5m2),
    "mx_eight": mx_eight,
    "int8": int8,
    "int8_zeros": int8_zeros,
    "mxfp4": mxfp4,
    "mxfp4_rows": mxfp4_rows,
    "nvfp4": nvfp4,
    "nvfp4_divided": lambda: nvfp4(True),
    "nf4": bitsandbytes,
    "nf4_plain_scales": lambda: bitsandbytes(nested=False),
    "nf4_odd_rows": lambda: bitsandbytes(columns=33),
    "nf4_in_bfloat16": lambda: bitsandbytes(columns=64, kept="bfloat16"),
    "fp4": lambda: bitsandbytes("fp4"),
}
