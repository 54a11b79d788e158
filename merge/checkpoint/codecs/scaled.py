"""Eight-bit numbers with scales: FP8 as DeepSeek, compressed-tensors and ModelOpt store it; integers.

number = (code - zero) * scale, one of each for the tensor, for each row, or for each rectangle of
``block_rows`` by ``block_columns``. Parts: ``weight``, and ``scale`` of (..., row blocks, column blocks)
unless codes are the numbers, and ``zero`` of its shape where zero points are stored. Settings: ``rows`` and
``row_blocks`` (of one matrix, where the tensor is a stack of them), ``block_rows``, ``block_columns``,
``divide`` (the scale is divided by it: 127 for bitsandbytes).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, float_bytes, powers_of_two
from merge.checkpoint.header import Coded


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows; see ``merge.checkpoint.codecs``."""
    count, columns = out.shape
    codes = parts.read(coded.parts["weight"], first * columns, count * columns)
    flat = out.view(-1)
    if codes.is_floating_point() and codes.element_size() == 1:
        float_bytes(codes, flat)
    else:
        flat.copy_(codes)
    for part, change in (("zero", Tensor.sub_), ("scale", Tensor.mul_)):
        if part in coded.parts:
            _each_block(coded, part, first, out, parts, change)


def _each_block(
    coded: Coded, part: str, first: int, out: Tensor, parts: Parts, change: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Changes every block by its own number of this part."""
    of, (count, columns), width = coded.settings, out.shape, coded.settings["block_columns"]
    blocks = -(-columns // width)
    row = torch.arange(first, first + count)
    place = row // of["rows"] * of["row_blocks"] + row % of["rows"] // of["block_rows"]
    begin, end = int(place[0]), int(place[-1]) + 1
    stored = parts.read(coded.parts[part], begin * blocks, (end - begin) * blocks)
    number = powers_of_two(stored) if stored.dtype == torch.uint8 else stored.float()
    if part == "scale" and "divide" in of:
        number = number / of["divide"]
    each = number.view(-1, blocks)[place - begin]
    if blocks * width == columns:
        change(out.view(count, blocks, width), each[:, :, None])
    else:
        change(out, each.repeat_interleave(width, 1)[:, :columns])
