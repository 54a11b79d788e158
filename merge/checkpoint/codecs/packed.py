"""Four- and eight-bit integers packed along the rows, as compressed-tensors stores them (``weight_packed``).

number = (code - zero) * scale, codes from the lowest bits of each 32-bit word upwards, one scale for each row
and group of columns; zero is half of the range where none is stored. Parts: ``packed`` (rows, words),
``scale`` (rows, groups) and, where there are any, ``zeros`` (words, groups), packed down the rows, and
``groups`` (columns), where these were reordered. Settings: ``bits``, ``group``.
"""

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, nibbles, reordered
from merge.checkpoint.header import Coded


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows; see ``merge.checkpoint.codecs``."""
    (count, columns), bits, size = out.shape, coded.settings["bits"], coded.settings["group"]
    packed, scale = coded.parts["packed"], coded.parts["scale"]
    words, groups = packed.shape[1], scale.shape[1]
    codes = parts.read(packed, first * words, count * words).view(count, words).view(torch.uint8)
    codes = nibbles(codes) if bits == 4 else codes
    out.copy_(codes[:, :columns])
    scales = parts.read(scale, first * groups, count * groups).view(count, groups).float()
    zero = _zeros(coded, first, count, parts)
    named = coded.parts.get("groups")
    group = None if named is None else reordered(parts, named, size, groups)
    if group is None:
        out.view(count, groups, size).sub_(zero[:, :, None]).mul_(scales[:, :, None])
    else:
        out.sub_(zero[:, group] if zero.shape[1] > 1 else zero).mul_(scales[:, group])


def _zeros(coded: Coded, first: int, count: int, parts: Parts) -> Tensor:
    """Zero points of these rows (count, groups), float32; (1, 1) where all have the same."""
    bits, zeros = coded.settings["bits"], coded.parts.get("zeros")
    if zeros is None:
        return torch.full((1, 1), float(1 << (bits - 1)))
    per, groups = 32 // bits, zeros.shape[1]
    low, high = first // per, -(-(first + count) // per)
    words = parts.read(zeros, low * groups, (high - low) * groups).view(-1, groups)
    row = torch.arange(first, first + count)
    shifts = (row % per * bits).to(torch.int32)[:, None]
    return (words[row // per - low] >> shifts & (1 << bits) - 1).float()
