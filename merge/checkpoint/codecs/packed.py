"""Four- and eight-bit integers packed along the rows, as compressed-tensors stores them (``weight_packed``).

number = (code - offset - zero) * scale, codes from the lowest bits of each 32-bit word upwards, one scale
for each row and group of columns. Parts: ``packed`` (rows, words), ``scale`` (rows, groups). Settings:
``bits``, ``group``.
"""

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, nibbles
from merge.checkpoint.header import Coded


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows; see ``merge.checkpoint.codecs``."""
    (count, columns), bits, group = out.shape, coded.settings["bits"], coded.settings["group"]
    packed, scale = coded.parts["packed"], coded.parts["scale"]
    words, groups = packed.shape[1], scale.shape[1]
    codes = parts.read(packed, first * words, count * words).view(count, words).view(torch.uint8)
    codes = nibbles(codes) if bits == 4 else codes
    scales = parts.read(scale, first * groups, count * groups).view(count, groups, 1).float()
    out.copy_(codes[:, :columns]).sub_(1 << (bits - 1))
    out.view(count, groups, group).mul_(scales)
