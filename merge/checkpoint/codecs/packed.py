"""Four- and eight-bit integers packed along the rows, as compressed-tensors stores them (``weight_packed``).

number = (code - zero) * scale, codes from the lowest bits of each 32-bit word upwards, one scale for each row
and group of columns; zero is half of the range where none is stored. Parts: ``packed`` (rows, words),
``scale`` (rows, groups) and, where there are any, ``zeros`` (words, groups), packed down the rows, and
``groups`` (columns), where these were reordered, and ``shape``. Settings: ``bits``, ``group`` (the last may
be smaller), ``rows`` and ``columns`` (words may have room for more).
"""

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, group_of_each, nibbles
from merge.checkpoint.header import Coded
from merge.file_errors import QuantizationMalformed


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows; see ``merge.checkpoint.codecs``."""
    (count, columns), bits, size = out.shape, coded.settings["bits"], coded.settings["group"]
    packed, scale = coded.parts["packed"], coded.parts["scale"]
    _check_shape(coded, parts)
    words, groups = packed.shape[1], scale.shape[1]
    codes = parts.read(packed, first * words, count * words).view(count, words).view(torch.uint8)
    codes = nibbles(codes) if bits == 4 else codes
    out.copy_(codes[:, :columns])
    scales = parts.read(scale, first * groups, count * groups).view(count, groups).float()
    zero = _zeros(coded, first, count, parts)
    group = group_of_each(parts, coded.parts.get("groups"), columns, size, groups)
    if group is None:
        out.view(count, groups, size).sub_(zero[:, :, None]).mul_(scales[:, :, None])
    else:
        out.sub_(zero[:, group] if zero.shape[1] > 1 else zero).mul_(scales[:, group])


def _check_shape(coded: Coded, parts: Parts) -> None:
    """That this very matrix has the shape that the plan took from another layer's."""
    said, planned = coded.parts.get("shape"), [coded.settings["rows"], coded.settings["columns"]]
    if said is not None and parts.read(said, 0, 2).tolist() != planned:
        raise QuantizationMalformed(f"{said.name} is not {planned}, as matrices of its place and size are.")


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
