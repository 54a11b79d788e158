"""AWQ: four-bit integers packed along the outputs in an interleaved order, with zero points and scales.

number[out, in] = scale[g, out] * (code[in, out] - zero[g, out]), g the group of that input. A 32-bit word
holds eight outputs; counted from its lowest bits they are 0, 2, 4, 6, 1, 3, 5, 7. Parts: ``codes`` (in, out /
8), ``zeros`` (groups, out / 8), ``scale`` (groups, out).
"""

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, lines, nibbles
from merge.checkpoint.header import Coded

PER_WORD = 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in the word each of its outputs is."""


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows, eight at a time; see ``merge.checkpoint.codecs``."""
    count = out.shape[0]
    words = first // PER_WORD, (first + count) // PER_WORD
    codes = _outputs_first(parts.columns(coded.parts["codes"], *words))
    zero = _outputs_first(parts.columns(coded.parts["zeros"], *words)).float()
    scale = parts.columns(coded.parts["scale"], first, first + count).T.float()
    out.copy_(codes)
    out.view(count, scale.shape[1], -1).sub_(zero[:, :, None]).mul_(scale[:, :, None])


def _outputs_first(words: Tensor) -> Tensor:
    """Packed words (n, k) to codes (8 k, n) in the order of the outputs; uint8."""
    lying = lines(words.T).view(torch.uint8)
    codes = nibbles(lying).view(words.shape[1], words.shape[0], PER_WORD)
    return codes[:, :, list(PLACES)].transpose(1, 2).reshape(-1, words.shape[0])
