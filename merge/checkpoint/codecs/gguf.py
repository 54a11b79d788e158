"""The block types of GGUF: 32 or 256 numbers in a fixed number of bytes, with their scales among them.

Bytes of a type's block and the meaning of its fields are those of ggml's format. Settings: ``type`` (ggml's
number of it), ``head`` (rows of a head, where the file holds the two halves of each head's rotation
interleaved), ``shift`` (added to every number: Gemma's norms are stored one larger). Part: ``data``, bytes of
(rows, bytes of a row).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from merge.checkpoint.codecs.gguf_large import iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k
from merge.checkpoint.codecs.gguf_small import iq4_nl, mxfp4, q4_0, q4_1, q5_0, q5_1, q8_0
from merge.checkpoint.codecs.parts import Parts
from merge.checkpoint.gguf.types import TYPES
from merge.checkpoint.header import Coded

BLOCKS: Mapping[int, Callable[[Tensor, Tensor], None]] = {
    2: q4_0, 3: q4_1, 6: q5_0, 7: q5_1, 8: q8_0, 10: q2_k, 11: q3_k, 12: q4_k, 13: q5_k, 14: q6_k,
    20: iq4_nl, 23: iq4_xs, 39: mxfp4,
}  # fmt: skip
"""For each quantised type what turns its blocks (n, bytes) into numbers (n, numbers of a block)."""
PLAIN: Mapping[int, torch.dtype] = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows; see ``merge.checkpoint.codecs``."""
    data, of = coded.parts["data"], coded.settings
    (count, columns), width = out.shape, data.shape[1]
    if "head" in of and data.shape[0] > 1:
        places = interleaved(torch.arange(first, first + count), of["head"])
        low, high = int(places.min()), int(places.max()) + 1
        lying = parts.read(data, low * width, (high - low) * width).view(-1, width)
        stored = lying[places - low].view(-1)
    else:
        stored = parts.read(data, first * width, count * width)
    number = of["type"]
    if number in PLAIN:
        out.copy_(stored.view(PLAIN[number]).view(count, columns))
    else:
        size = TYPES[number]
        BLOCKS[number](stored.view(-1, size.block_bytes), out.view(-1, size.entries))
    if "head" in of and data.shape[0] == 1:
        out.copy_(out[:, interleaved(torch.arange(columns), of["head"])])
    if "shift" in of:
        out.add_(of["shift"])


def interleaved(row: Tensor, head: int) -> Tensor:
    """Where in the file the rows of a model lie: row (half, i) of each head is stored as (i, half)."""
    place = row % head
    return row - place + place % (head // 2) * 2 + place // (head // 2)
