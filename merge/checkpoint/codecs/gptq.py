"""GPTQ: integers packed along the inputs, transposed, with zero points and scales for groups of inputs.

number[out, in] = scale[g, out] * (code[in, out] - zero[g, out]), g the group of that input. Parts: ``codes``
(in * bits / 32, out), ``zeros`` (groups, out * bits / 32), ``scale`` (groups, out) and, where the inputs were
reordered, ``groups`` (in). Settings: ``bits`` (2, 3, 4 or 8; 32 codes of 3 bits fill three words, some of
them across two), ``group`` (inputs of one; the last may be smaller) and ``plus``: files of the first format
store zero points less one, modulo 2 to the power of bits.
"""

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, group_of_each, lines
from merge.checkpoint.header import Coded


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows; see ``merge.checkpoint.codecs``."""
    (count, inputs), bits, last = out.shape, coded.settings["bits"], first + out.shape[0]
    stored = parts.columns(coded.parts["codes"], first, last).T
    codes = unpacked(lines(stored).view(torch.uint8), bits).view(count, inputs)
    scale = parts.columns(coded.parts["scale"], first, last).T.float().contiguous()
    zero = _zeros(coded, first, last, parts)
    size, named = coded.settings["group"], coded.parts.get("groups")
    group = group_of_each(parts, named, inputs, size, scale.shape[1])
    if group is None:
        out.copy_(codes)
        out.view(count, -1, size).sub_(zero[:, :, None]).mul_(scale[:, :, None])
    else:
        out.copy_(codes).sub_(zero[:, group]).mul_(scale[:, group])


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """Bytes (..., k) to the codes in them (..., 8 / bits * k), from the lowest bits upwards; uint8."""
    if bits == 8:
        return packed
    if bits == 3:
        low, middle, high = packed.reshape(*packed.shape[:-1], -1, 3).int().unbind(-1)
        eight = low | middle << 8 | high << 16
        return torch.stack([eight >> shift & 7 for shift in range(0, 24, 3)], -1).flatten(-2).to(torch.uint8)
    mask = (1 << bits) - 1
    return torch.stack([packed >> shift & mask for shift in range(0, 8, bits)], -1).flatten(-2)


def _zeros(coded: Coded, first: int, last: int, parts: Parts) -> Tensor:
    """Zero points (outputs, groups) of outputs ``first`` to ``last``, float32."""
    bits = coded.settings["bits"]
    per, size = (32, 3) if bits == 3 else (32 // bits, 1)
    words = parts.columns(coded.parts["zeros"], first // per * size, -(-last // per) * size).contiguous()
    zeros = unpacked(words.view(torch.uint8), bits)[:, first % per : first % per + last - first]
    if coded.settings["plus"]:
        zeros = zeros + 1 & (1 << bits) - 1
    return zeros.T.float().contiguous()
