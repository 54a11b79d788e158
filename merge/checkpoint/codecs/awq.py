"""AWQ: four-bit integers with zero points and scales for groups of inputs, packed in one of three ways.

number[out, in] = scale[g, out] * (code[in, out] - zero[g, out]), g the group of that input.

- gemm (``rows``): a 32-bit word holds eight outputs; counted from its lowest bits they are 0, 2, 4, 6, 1, 3,
  5, 7. Parts: ``codes`` (in, out / 8), ``zeros`` (groups, out / 8), ``scale`` (groups, out).
- gemv (``gemv_rows``): a word holds eight inputs of one output in their order. Parts: ``codes`` (out, in /
  8), ``zeros`` (out, words), ``scale`` (out, 8 words), filled up beyond the groups. Setting: ``group``.
- gemv_fast (``fast_rows``): a 16-bit word holds four inputs of one output. A line is four outputs: of each 64
  inputs first the 16 words of the first output, then those of the others; 32 inputs have the order of
  ``FAST_PLACES``. Parts: ``codes`` (out / 4, in), ``scale`` and ``shift`` (filled up, out), where shift is
  minus scale times zero. Setting: ``group``.
"""

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, lines, nibbles
from merge.checkpoint.header import Coded

PER_WORD = 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in the word each of its outputs is."""
FAST_OUTPUTS, FAST_INPUTS = 4, 64
"""Outputs of a line of gemv_fast, and inputs of one output that lie together."""
FAST_PLACES = tuple(8 * pair + 4 * odd + run for run in range(4) for pair in range(4) for odd in range(2))
"""Where each of 32 inputs is: the same pair of every run of eight lies together, odd ones after even ones."""


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


def gemv_rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows."""
    count, inputs = out.shape
    groups = inputs // coded.settings["group"]

    def stored(name: str) -> Tensor:
        part = coded.parts[name]
        width = part.shape[1]
        return parts.read(part, first * width, count * width).view(count, width)

    out.copy_(nibbles(stored("codes").view(torch.uint8)))
    zero = nibbles(stored("zeros").view(torch.uint8))[:, :groups].float()
    scale = stored("scale")[:, :groups].float()
    out.view(count, groups, -1).sub_(zero[:, :, None]).mul_(scale[:, :, None])


def fast_rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows, four at a time."""
    count, inputs = out.shape
    groups, held = inputs // coded.settings["group"], count // FAST_OUTPUTS
    words = parts.read(coded.parts["codes"], first // FAST_OUTPUTS * inputs, held * inputs)
    packed = words.view(torch.uint8).view(held, inputs // FAST_INPUTS, FAST_OUTPUTS, -1)
    codes = nibbles(packed).transpose(1, 2).reshape(count, -1, len(FAST_PLACES))
    out.copy_(codes[:, :, list(FAST_PLACES)].view(count, inputs))
    scale, shift = (
        parts.columns(coded.parts[name], first, first + count)[:groups].T.float()[:, :, None]
        for name in ("scale", "shift")
    )
    out.view(count, groups, -1).mul_(scale).add_(shift)
